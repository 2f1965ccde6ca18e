"""Cross-entropy at supervised positions only, in chunks. The forward pass computes the gradient, too.

Gemma 3's vocabulary has 262,144 entries: in small models the head is most of the work, and full logits are most of the
memory. Here the head runs only at positions that are scored. A chunk's logits live until their gradient to the hidden
states is known; backward keeps none. The head's weight is frozen and gets no gradient. Computing the gradient in the
forward pass is Liger Kernel's idea (Hsu et al. 2024, arXiv:2410.10989). A CPU goes on from there: a chunk's logits
exist for a block of the vocabulary only (`loss_blocks.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config.sections.sharing import LOSS_CHUNK_ROWS
from .loss_blocks import VocabularyBlocks


class SupervisedCrossEntropy:
    """The sum of -log p(target) under a frozen head.

    Two buffers of a chunk's logits live as long as this object, so a pass need not fault hundreds of MiB in again.

    head_weight: [vocabulary, hidden size]; softcap: the model's `final_logit_softcapping`
    chunk_rows: positions whose logits exist at once; None: the most that a device of this kind uses
    """

    def __init__(self, head_weight: Tensor, softcap: float | None = None, chunk_rows: int | None = None) -> None:
        self.head_weight = head_weight
        self.softcap = softcap
        self.chunk_rows = chunk_rows or LOSS_CHUNK_ROWS["cuda" if head_weight.is_cuda else "cpu"][0]
        self.in_blocks = True  # where hidden states are on a CPU; tests turn it off
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._blocks: VocabularyBlocks | None = None

    def __call__(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Returns an fp32 scalar, which backpropagates only into `hidden`.

        hidden: [N, hidden size] at the positions that predict a supervised token; targets: int64 [N]
        """
        if hidden.shape[0] == 0:
            return hidden.sum() * 0.0
        loss: Tensor = _InForward.apply(hidden, targets, self)
        return loss

    def logits(self, hidden: Tensor) -> Tensor:
        """The head's logits as the loss sees them. hidden: [N, hidden size]. Returns fp32 [N, vocabulary]"""
        scores = torch.mm(hidden, self.head_weight.T).float()
        return scores if self.softcap is None else scores.div_(self.softcap).tanh_().mul_(self.softcap)

    def losses_and_gradient(
        self, hidden: Tensor, targets: Tensor, wants_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The summed loss and, if wanted, its gradient to `hidden`."""
        gradient = torch.empty_like(hidden) if wants_gradient else None
        if self.in_blocks and not hidden.is_cuda:
            return self._by_blocks(hidden, targets, gradient), gradient
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], self.chunk_rows):
            piece = slice(start, start + self.chunk_rows)
            loss, gradient_of_logits = self._chunk(hidden[piece], targets[piece].unsqueeze(1), wants_gradient)
            total += loss
            if gradient is not None and gradient_of_logits is not None:
                torch.mm(gradient_of_logits, self.head_weight, out=gradient[piece])
        return total, gradient

    def _by_blocks(self, hidden: Tensor, targets: Tensor, gradient: Tensor | None) -> Tensor:
        """The summed loss of equal chunks; fills `gradient`, if there is one."""
        if self._blocks is None or self._blocks.dtype != hidden.dtype:
            words, width = self.head_weight.shape
            self._blocks = VocabularyBlocks(words, width, hidden.dtype, self.softcap, self.chunk_rows)
        total = torch.zeros(())
        for piece in torch.arange(len(hidden)).tensor_split(-(-len(hidden) // self.chunk_rows)):
            rows = slice(int(piece[0]), int(piece[-1]) + 1)
            own = None if gradient is None else gradient[rows]
            total += self._blocks.losses(hidden[rows], targets[rows], self.head_weight, own)
        return total

    def _chunk(self, hidden: Tensor, targets: Tensor, wants_gradient: bool) -> tuple[Tensor, Tensor | None]:
        logits, scores = self._workspace(hidden)
        torch.mm(hidden, self.head_weight.T, out=logits)
        scores.copy_(logits)
        if self.softcap is not None:
            scores.div_(self.softcap).tanh_().mul_(self.softcap)
        at_target = scores.gather(1, targets)
        largest = scores.amax(1, keepdim=True)
        slope = None if self.softcap is None or not wants_gradient else 1 - (scores / self.softcap).square()
        probabilities = torch.softmax(scores, 1, out=scores)
        # log-sum-exp from the largest entry: max - log p(max) cannot underflow, as p(max) is at least 1 / vocabulary.
        log_normaliser = largest - probabilities.amax(1, keepdim=True).log()
        loss = (log_normaliser - at_target).sum()
        if not wants_gradient:
            return loss, None
        probabilities.scatter_add_(1, targets, torch.full_like(at_target, -1.0))
        if slope is not None:
            probabilities.mul_(slope)
        return loss, probabilities if logits.dtype == probabilities.dtype else logits.copy_(probabilities)

    def _workspace(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits in the hidden states' dtype and in fp32, [rows of this chunk, vocabulary]."""
        if self._buffers is None or self._buffers[0].dtype != hidden.dtype:
            shape = (self.chunk_rows, self.head_weight.shape[0])
            logits = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
            self._buffers = logits, torch.empty(shape, dtype=torch.float32, device=hidden.device)
        logits, scores = self._buffers
        return logits[: hidden.shape[0]], scores[: hidden.shape[0]]


class _InForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, loss: SupervisedCrossEntropy) -> Tensor:
        total, gradient = loss.losses_and_gradient(hidden, targets, ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].to(gradient.dtype), None, None
