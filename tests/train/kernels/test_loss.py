"""The chunked loss equals torch's cross-entropy, value and gradient."""

from __future__ import annotations

import pytest
import torch
from gemfleet.train.kernels.loss import SupervisedCrossEntropy
from torch.nn import functional


def both(dtype: torch.dtype, chunk_rows: int, softcap: float | None = None) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    hidden = torch.randn(37, 24, dtype=dtype, requires_grad=True)
    weight = torch.randn(301, 24, dtype=dtype)
    targets = torch.randint(0, 301, (37,))
    criterion = SupervisedCrossEntropy(weight, softcap, chunk_rows)
    ours = criterion(hidden, targets)
    (our_gradient,) = torch.autograd.grad(ours * 0.5, hidden)
    logits = (hidden @ weight.T).float()
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    theirs = functional.cross_entropy(logits, targets, reduction="sum")
    (their_gradient,) = torch.autograd.grad(theirs * 0.5, hidden)
    return ours, theirs, our_gradient, their_gradient


@pytest.mark.parametrize("chunk_rows", [1, 8, 37, 100])
def test_equals_cross_entropy(chunk_rows: int) -> None:
    ours, theirs, our_gradient, their_gradient = both(torch.float32, chunk_rows)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-6)


def test_bf16_stays_close() -> None:
    ours, theirs, our_gradient, their_gradient = both(torch.bfloat16, 8)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert (our_gradient - their_gradient).norm() / their_gradient.norm() < 0.02


def test_softcap() -> None:
    ours, theirs, our_gradient, their_gradient = both(torch.float32, 8, softcap=5.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-5)


def test_extreme_logits_neither_overflow_nor_vanish() -> None:
    hidden = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    loss = SupervisedCrossEntropy(torch.tensor([[1.0], [-1.0], [0.0]]))(hidden, torch.tensor([1, 0]))
    assert float(loss.detach()) == pytest.approx(1200.0)


def test_no_supervised_position_costs_nothing() -> None:
    hidden = torch.randn(0, 4, requires_grad=True)
    loss = SupervisedCrossEntropy(torch.randn(10, 4))(hidden, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert float(loss.detach()) == 0.0
