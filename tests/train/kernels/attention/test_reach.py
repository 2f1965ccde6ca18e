"""Packed documents with pictures have transformers' own masks for Gemma 3, pair by pair, under every kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from gemfleet.train.kernels.attention import blocks
from gemfleet.train.kernels.attention.packed import Packing, packed_attention
from gemfleet.train.kernels.attention.reach import reach_of
from gemfleet.train.kernels.capabilities import AttentionKernel
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_model import tiny_config
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import create_masks_for_vision_model, get_block_sequence_ids_for_mask

WINDOW = 5
KINDS = {"full_attention": None, "sliding_attention": WINDOW}
# Which tokens of each document are a picture's.
layouts = st.lists(st.lists(st.booleans(), min_size=1, max_size=20), min_size=1, max_size=4)


def seen_by_transformers(document: Sequence[bool], kind: str) -> Tensor:
    """bool [L, L]: the mask that `Gemma3Model` makes of one document alone."""
    config = tiny_config(window=WINDOW)
    config._attn_implementation = "eager"
    types = torch.tensor([document]).long()
    masks = create_masks_for_vision_model(
        config=config,
        inputs_embeds=torch.zeros(1, len(document), config.hidden_size),
        attention_mask=None,
        past_key_values=None,
        position_ids=None,
        block_sequence_ids=get_block_sequence_ids_for_mask(types),
    )
    mask: Tensor = masks[kind][0, 0] == 0
    return mask


def seen_by_kernel(documents: Sequence[Sequence[bool]], kernel: AttentionKernel, window: int | None) -> Tensor:
    """bool [T, T]: equal scores mix the values of all keys that a query sees, and each value is a direction alone."""
    lengths = np.array([len(document) for document in documents], np.int32)
    tokens = int(lengths.sum())
    reach = torch.from_numpy(reach_of(np.concatenate([np.array(d, np.bool_) for d in documents]), lengths))
    ends = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    packing = Packing(tuple(lengths.tolist()), ends, kernel, reach=reach)
    flat = torch.zeros(1, 1, tokens, tokens)
    mixed, _ = packed_attention(
        nn.Identity(),
        flat,
        flat,
        torch.eye(tokens)[None, None],
        None,
        packing=packing,
        scaling=1.0,
        sliding_window=window,
    )
    return mixed[0, :, 0] > 0


@pytest.mark.parametrize("kernel", ["sdpa", "blocks", "flex"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=40, deadline=None)
@given(documents=layouts)
def test_every_pair_is_as_in_transformers(kernel: AttentionKernel, documents: list[list[bool]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_QUERIES", 4)
        for kind, window in KINDS.items():
            expected = torch.block_diag(*(seen_by_transformers(document, kind).float() for document in documents))
            assert torch.equal(seen_by_kernel(documents, kernel, window), expected > 0)
