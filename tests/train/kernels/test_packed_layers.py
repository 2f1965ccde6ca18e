"""Where the quantised weights of a layer lie in its bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from gemfleet.train.errors import UserError
from gemfleet.train.kernels.packed_layers import ALIGNMENT, PARAMETER, pack_layer
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

sizes = st.integers(1, 40)


def layer_of(widths: list[tuple[int, int]]) -> nn.Module:
    layer = nn.ModuleDict({f"p{i}": nn.Linear(columns, rows, bias=False) for i, (rows, columns) in enumerate(widths)})
    return layer.requires_grad_(False)


@given(st.lists(st.tuples(sizes, sizes.map(lambda n: 32 * n)), min_size=1, max_size=5), st.integers(1, 9), st.data())
def test_fields_lie_apart_and_every_rank_has_an_equal_share(
    widths: list[tuple[int, int]], ranks: int, data: st.DataObject
) -> None:
    layer = layer_of(widths)
    names = [f"p{i}" for i in range(len(widths))]
    packed = pack_layer(layer, data.draw(st.sets(st.sampled_from(names))), ranks)
    fields = [field for weight in packed.weights for field in weight.fields.values()]
    assert all(field.start % ALIGNMENT == 0 for field in fields)
    assert all(before.end <= after.start for before, after in pairwise(fields))
    assert fields[-1].end <= packed.nbytes < fields[-1].end + (ranks + 1) * ALIGNMENT
    assert packed.nbytes % (ranks * ALIGNMENT) == 0
    assert [name for name, _ in layer.named_parameters()] == [PARAMETER]
    whole = torch.zeros(packed.nbytes, dtype=torch.uint8)
    assert all(field.view(whole).shape == field.shape for field in fields)


def test_four_bits_need_whole_blocks_in_a_row() -> None:
    with pytest.raises(
        UserError, match=r"int4 with train\.strategy fsdp2.* p0 has 40 columns.*use train\.strategy ddp"
    ):
        pack_layer(layer_of([(8, 40)]), (), 2)
    assert pack_layer(layer_of([(8, 40)]), ("p0",), 2).weights[0].bits == 8
