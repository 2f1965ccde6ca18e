"""What a pass needs on the device says the same as its rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gemfleet.train.data.packing import pack_block
from gemfleet.train.kernels.passes import copy_to, pass_inputs, positions_in
from support.reference_step import LENGTHS, examples


def test_positions_begin_anew_in_each_document() -> None:
    assert positions_in(np.array([3, 1, 2], np.int32)).tolist() == [0, 1, 2, 0, 0, 1]


def test_scored_states_predict_the_supervised_tokens() -> None:
    rows = pack_block(examples(), 64)
    inputs = pass_inputs(rows, torch.device("cpu"), "sdpa")
    assert inputs.tokens.tolist() == rows.tokens.tolist()
    assert inputs.targets.tolist() == rows.tokens[rows.supervised].tolist()
    assert torch.equal(inputs.tokens[inputs.predicting + 1], inputs.targets)
    assert sorted(inputs.packing.lengths) == sorted(LENGTHS)
    assert inputs.packing.cu_seqlens.tolist() == [0, *np.cumsum(rows.document_lengths)]
    assert inputs.packing.cu_seqlens.dtype == torch.int32
    # No state predicts across two documents.
    assert (inputs.positions[inputs.predicting + 1] > 0).all()


@pytest.mark.gpu
def test_copies_arrive_whole_on_a_gpu_that_is_busy() -> None:
    device = torch.device("cuda", 0)
    busy = torch.randn(4096, 4096, device=device)
    for seed in range(50):
        for _ in range(4):
            busy = busy @ busy.T / 4096
        array = np.random.default_rng(seed).integers(0, 2**40, 100_000)
        (copied,) = copy_to(device, (array,))
        assert torch.equal(copied.cpu(), torch.from_numpy(array))
