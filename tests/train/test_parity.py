"""Loss and adapter gradients equal plain transformers + peft, however the step is cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.multiprocessing
from safetensors.torch import load_file
from support.reference_step import LENGTHS, Case, gemfleet_step, reference, relative_difference, run_rank

PACKED, UNPACKED = 64, max(LENGTHS)
ONE_PASS, FOUR_PASSES = 100, 1
TOLERANCE = 1e-4


@pytest.mark.parametrize("max_length", [PACKED, UNPACKED], ids=["packed", "unpacked"])
@pytest.mark.parametrize("micro", [ONE_PASS, FOUR_PASSES], ids=["one pass", "accumulated"])
def test_one_rank_equals_plain_transformers(max_length: int, micro: int) -> None:
    loss, gradients = gemfleet_step(Case(max_length, micro, ranks=1), rank=0)
    expected_loss, expected = reference()
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert relative_difference(gradients, expected) < TOLERANCE


def test_two_ranks_equal_plain_transformers(tmp_path: Path) -> None:
    cases = [Case(length, micro, ranks=2) for length in (PACKED, UNPACKED) for micro in (ONE_PASS, FOUR_PASSES)]
    torch.multiprocessing.spawn(  # type: ignore[attr-defined]
        run_rank, (cases, str(tmp_path)), nprocs=2
    )
    expected_loss, expected = reference()
    for number in range(len(cases)):
        gradients = load_file(tmp_path / f"{number}.safetensors")
        assert float(gradients.pop("loss")) == pytest.approx(expected_loss, rel=TOLERANCE)
        assert relative_difference(gradients, expected) < TOLERANCE


def test_an_idle_rank_adds_nothing() -> None:
    """With more ranks than examples some have no rows: their gradients are zeros, so all can meet in a reduction."""
    from gemfleet.train.config.sections.recipe import OptimConfig
    from gemfleet.train.strategies.ddp import DdpStrategy
    from support.reference_step import trainable

    model, strategy = trainable(), DdpStrategy(OptimConfig())
    strategy.setup(model)
    strategy.reduce_gradients()
    gradients = [p.grad for p in model.adapter_parameters().values()]
    assert gradients
    assert all(g is not None and not g.any() for g in gradients)
