"""The chunked loss equals torch's cross-entropy, value and gradient."""

from __future__ import annotations

import math

import pytest
import torch
from gemfleet.train.config.sections.sharing import LOSS_BLOCK_WORDS
from gemfleet.train.kernels import loss_blocks
from gemfleet.train.kernels.fused.library import library
from gemfleet.train.kernels.loss import SupervisedCrossEntropy
from torch.nn import functional

WORDS = 2 * LOSS_BLOCK_WORDS + 301


def both(
    dtype: torch.dtype, chunk_rows: int, softcap: float | None = None, in_blocks: bool = True
) -> tuple[torch.Tensor, ...]:
    """in_blocks: as on a CPU; else as on CUDA"""
    torch.manual_seed(0)
    hidden = torch.randn(37, 24, dtype=dtype, requires_grad=True)
    weight = torch.randn(WORDS, 24, dtype=dtype)
    targets = torch.randint(0, WORDS, (37,))
    criterion = SupervisedCrossEntropy(weight, softcap, chunk_rows)
    criterion.in_blocks = in_blocks
    ours = criterion(hidden, targets)
    (our_gradient,) = torch.autograd.grad(ours * 0.5, hidden)
    logits = (hidden @ weight.T).float()
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    theirs = functional.cross_entropy(logits, targets, reduction="sum")
    (their_gradient,) = torch.autograd.grad(theirs * 0.5, hidden)
    return ours, theirs, our_gradient, their_gradient


@pytest.mark.parametrize("in_blocks", [True, False])
@pytest.mark.parametrize("chunk_rows", [1, 8, 37, 100])
def test_equals_cross_entropy(chunk_rows: int, in_blocks: bool) -> None:
    ours, theirs, our_gradient, their_gradient = both(torch.float32, chunk_rows, in_blocks=in_blocks)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("in_blocks", [True, False])
def test_bf16_stays_close(in_blocks: bool) -> None:
    ours, theirs, our_gradient, their_gradient = both(torch.bfloat16, 8, in_blocks=in_blocks)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert (our_gradient - their_gradient).norm() / their_gradient.norm() < 0.02


@pytest.mark.parametrize("in_blocks", [True, False])
def test_softcap(in_blocks: bool) -> None:
    ours, theirs, our_gradient, their_gradient = both(torch.float32, 8, softcap=5.0, in_blocks=in_blocks)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("in_blocks", [True, False])
def test_extreme_logits_neither_overflow_nor_vanish(in_blocks: bool) -> None:
    hidden = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    criterion = SupervisedCrossEntropy(torch.tensor([[1.0], [-1.0], [0.0]]))
    criterion.in_blocks = in_blocks
    loss = criterion(hidden, torch.tensor([1, 0]))
    assert float(loss.detach()) == pytest.approx(1200.0)


def test_a_position_with_few_doubts_keeps_its_gradient_in_bf16() -> None:
    hidden = torch.tensor([[9.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[1.0, 0.5], [0.0, 1.0], [0.0, -1.0]], dtype=torch.bfloat16)
    SupervisedCrossEntropy(weight)(hidden, torch.tensor([0])).backward()
    doubt = 2 / (2 + math.exp(9.0))  # 1 - p is 2.5e-4, below the steps of bf16 near 1
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad.float(), torch.tensor([[-doubt, -doubt / 2]]), rtol=1e-2, atol=0.0)


def test_no_supervised_position_costs_nothing() -> None:
    hidden = torch.randn(0, 4, requires_grad=True)
    loss = SupervisedCrossEntropy(torch.randn(10, 4))(hidden, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert float(loss.detach()) == 0.0


@pytest.mark.skipif(library() is None, reason="no C++ compiler")
@pytest.mark.parametrize(("spread", "kept"), [(8.0, (128, 1700)), (0.01, (2048, 2048))])
def test_unlikely_words_are_left_out_of_the_gradient_and_no_position_misses_them(
    monkeypatch: pytest.MonkeyPatch, spread: float, kept: tuple[int, int]
) -> None:
    """spread: of the logits; kept: between how many words of 2,048 count. Where all are alike, all do."""
    torch.manual_seed(0)
    hidden = torch.randn(40, 64).bfloat16()
    head = (torch.randn(4096, 64) * spread / 8).bfloat16()
    targets = torch.randint(4096, (40,))
    found = []
    for share in (loss_blocks.LOST_SHARE, 0.0):
        monkeypatch.setattr(loss_blocks, "LOST_SHARE", share)
        blocks, gradient = loss_blocks.VocabularyBlocks(4096, 64, torch.bfloat16, None, 40), torch.empty_like(hidden)
        found.append((blocks.losses(hidden, targets, head, gradient), gradient.float(), int(blocks._count)))
    (loss, less, count), (whole_loss, whole, all_words) = found
    assert (loss, all_words) == (whole_loss, 2048)
    assert kept[0] <= count <= kept[1]
    lost = (less - whole).norm(dim=1) / whole.norm(dim=1)
    assert lost.max() <= (2.0**-6 if count < 2048 else 0)  # of a gradient that is itself rounded to bf16
