"""Cross-entropy at supervised positions only, in chunks, its gradient computed in the forward pass.

Gemma 3's vocabulary has 262,144 entries: for the small models most of the work is the head, and full logits are most of the
memory. Only positions that are scored pay for the head here; a chunk's logits live until its gradient with respect to the
hidden states is known, and are never kept for backward. The head's weight is frozen and gets no gradient.
The idea of computing the gradient in the forward pass is Liger Kernel's (Hsu et al. 2024, arXiv:2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS_CPU = 128
CHUNK_ROWS_CUDA = 2048


def supervised_cross_entropy(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, softcap: float | None = None, chunk_rows: int | None = None
) -> Tensor:
    """Sum over positions of -log p(target), as an fp32 scalar that backpropagates into `hidden` alone.

    hidden: [N, hidden size] at the positions that predict a supervised token; head_weight: [vocabulary, hidden size], frozen;
    targets: int64 [N]; softcap: the model's `final_logit_softcapping`.
    """
    if hidden.shape[0] == 0:
        return hidden.sum() * 0.0
    rows = chunk_rows or (CHUNK_ROWS_CUDA if hidden.is_cuda else CHUNK_ROWS_CPU)
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, head_weight, targets, softcap, rows)
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head_weight: Tensor, targets: Tensor, softcap: float | None, chunk_rows: int
    ) -> Tensor:
        needs_gradient = hidden.requires_grad
        gradient = torch.empty_like(hidden) if needs_gradient else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], chunk_rows):
            piece = slice(start, start + chunk_rows)
            loss, grad_logits = _chunk(hidden[piece], head_weight, targets[piece], softcap, needs_gradient)
            total += loss
            if gradient is not None and grad_logits is not None:
                torch.mm(grad_logits, head_weight, out=gradient[piece])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].to(gradient.dtype), None, None, None, None


def _chunk(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, softcap: float | None, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss of one chunk and its gradient with respect to the logits, in the hidden states' dtype."""
    logits = torch.mm(hidden, head_weight.T)
    slope = None
    if softcap is not None:
        bounded = torch.tanh(logits.float() / softcap)
        slope = 1 - bounded.square()
        logits = bounded * softcap
    probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
    # log-sum-exp from the largest entry: max - log p(max) never under- or overflows, as p(max) >= 1 / vocabulary.
    largest, where = logits.max(dim=-1, keepdim=True)
    log_normaliser = largest.float() - probabilities.gather(1, where).log()
    at_target = targets.unsqueeze(1)
    loss = (log_normaliser - logits.gather(1, at_target).float()).sum()
    if not needs_gradient:
        return loss, None
    probabilities.scatter_add_(1, at_target, torch.full_like(log_normaliser, -1.0))
    if slope is not None:
        probabilities.mul_(slope)
    return loss, probabilities.to(hidden.dtype)
