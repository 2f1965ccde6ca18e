"""Cross-entropy under a frozen head on a CPU, over blocks of the vocabulary that stay in the cache.

It is attention without a mask: a position asks, the head's rows are keys and values. As in FlashAttention (Dao et al.
2022, arXiv:2205.14135), the sums over the words are brought forward block by block against the largest logit so far,
so logits are never held whole and are not read from memory again.

The target's word is left out of the sums. So the gradient of a position with few doubts keeps its precision: it is
`1 - p` times the distance of the other words' mean from the target's row.

Most words are so unlikely that their share of a position's gradient is below what bf16 rounds away. As in Wijmans et
al. 2024 (arXiv:2411.09009), the gradient's product leaves out words that are unlikely at every position of a chunk; the
loss itself has all words. No position loses more than `LOST_SHARE` of the sum over its words in this way. Only the C++
does so.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..config.sections.sharing import LOSS_BLOCK_WORDS
from .fused.library import call, library

LOST_SHARE = 2.0**-8  # what bf16 rounds a number by, at most


class VocabularyBlocks:
    """Buffers that live as long as this object, and what is computed in them.

    vocabulary, width: the head's shape; dtype: of the hidden states; softcap: as in `SupervisedCrossEntropy`
    rows: positions of a chunk at most
    """

    def __init__(self, vocabulary: int, width: int, dtype: torch.dtype, softcap: float | None, rows: int) -> None:
        self.dtype, self._softcap = dtype, softcap
        self._words = min(LOSS_BLOCK_WORDS, vocabulary)
        self._fused = dtype == torch.bfloat16 and softcap is None and library() is not None
        # The second holds scores, or where these are fused into one pass, the columns that count.
        second = dtype if self._fused else torch.float32
        self._buffers = [torch.empty(rows * self._words, dtype=each) for each in (dtype, second)]
        if self._fused:
            self._rows = torch.empty(self._words, width, dtype=dtype)
            self._chosen, self._count = torch.empty(self._words, dtype=torch.int64), torch.empty(1, dtype=torch.int64)

    def losses(self, hidden: Tensor, targets: Tensor, head: Tensor, gradient: Tensor | None) -> Tensor:
        """The summed loss of one chunk, fp32. hidden: [N, hidden size]; targets: int64 [N]

        head: the head's weight; gradient: [N, hidden size], is filled with the loss's gradient to `hidden`
        """
        largest = torch.full((len(hidden), 1), torch.finfo(torch.float32).min)
        faded = torch.ones_like(largest)
        others, at_target, slopes = torch.zeros(len(hidden), 1), torch.empty(len(hidden)), torch.ones(len(hidden))
        lost = torch.zeros(len(hidden))
        mixed = None if gradient is None else torch.zeros(hidden.shape, dtype=torch.float32)
        for (first, last), places, words in _blocks(targets, head.shape[0], self._words):
            logits, scores = (part[: len(hidden) * (last - first)].view(len(hidden), -1) for part in self._buffers)
            torch.mm(hidden, head[first:last].T, out=logits)
            if self._fused:
                at_target[places] = logits[places, words].float()
                logits[places, words] = -torch.inf
                call("exponentials", logits, largest, others, faded, *logits.shape)
            else:
                slope = self._score(logits, scores, gradient is not None)
                at_target[places] = scores[places, words]
                scores[places, words] = -torch.inf
                before, largest = largest, torch.maximum(largest, scores.amax(1, keepdim=True))
                faded = before.sub_(largest).exp_()
                others.mul_(faded).add_(scores.sub_(largest).exp_().sum(1, keepdim=True))
                if slope is not None:
                    slopes[places] = slope[places, words]
                    scores.mul_(slope)
                logits.copy_(scores)
            if mixed is not None:
                rows = head[first:last]
                if self._fused:
                    logits, rows = self._likely(logits, rows, others, faded, lost)
                mixed.mul_(faded).add_(logits @ rows)
        # -log p = log(1 + others / target), and 1 - p is the sigmoid of the same distance.
        distance = largest.add_(others.log()).squeeze(1) - at_target
        if gradient is not None and mixed is not None:
            mixed.div_(others).sub_(head[targets].float().mul_(slopes.unsqueeze(1)))
            gradient.copy_(mixed.mul_(distance.sigmoid().unsqueeze(1)))
        return torch.nn.functional.softplus(distance).sum()

    def _likely(
        self, exponentials: Tensor, rows: Tensor, sums: Tensor, faded: Tensor, lost: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The columns of the exponentials [N, words] that count in the gradient, and the head's rows of their words."""
        into = (self._chosen, self._buffers[1], self._count)
        call("likely", exponentials, sums, faded, lost, *into, *exponentials.shape, LOST_SHARE)
        if (count := int(self._count)) == len(rows):
            return exponentials, rows
        kept = self._buffers[1][: len(exponentials) * count].view(len(exponentials), count)
        return kept, torch.index_select(rows, 0, self._chosen[:count], out=self._rows[:count])

    def _score(self, logits: Tensor, scores: Tensor, sloped: bool) -> Tensor | None:
        """Fills `scores` [N, words], under the softcap. Returns the slopes of the softcap, if any."""
        scores.copy_(logits)
        if self._softcap is None:
            return None
        scores.div_(self._softcap).tanh_()
        slope = 1 - scores.square() if sloped else None
        scores.mul_(self._softcap)
        return slope


def _blocks(targets: Tensor, vocabulary: int, words: int) -> Iterator[tuple[tuple[int, int], Tensor, Tensor]]:
    """Each block's first and last word, the positions whose target is in it, and the targets' places in the block."""
    order = targets.argsort()
    begins = range(0, vocabulary, words)
    ends = torch.searchsorted(targets[order], torch.tensor([*begins[1:], vocabulary])).tolist()
    start = 0
    for first, end in zip(begins, ends, strict=True):
        places = order[start:end]
        yield (first, min(first + words, vocabulary)), places, targets[places] - first
        start = end
