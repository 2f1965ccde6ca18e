"""FLOPs of a LoRA training step, counted from the documents it trains on. A multiply-add counts as two.

Model FLOPs are what the mathematics needs: forward, gradients of activations, gradients of adapters. The frozen base
gets no gradient of its own, which is a third of the usual 6 N. Hardware FLOPs add what activation checkpointing
computes a second time. Padding is neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .counts import body_linear, embedding
from .options import Checkpointing
from .shapes import ModelShape


@dataclass(frozen=True)
class Flops:
    """model: what the step needs; recomputed: what activation checkpointing adds."""

    model: float
    recomputed: float = 0.0

    @property
    def hardware(self) -> float:
        return self.model + self.recomputed


@dataclass(frozen=True)
class FlopCounter:
    """adapters: LoRA parameters of the whole model; checkpointing: how activations are kept."""

    shape: ModelShape
    adapters: int
    checkpointing: Checkpointing = "off"

    def count(self, document_lengths: Sequence[int], supervised_tokens: int) -> Flops:
        """Of one forward and backward over these documents, of which so many tokens are scored."""
        tokens, attention = sum(document_lengths), attention_forward(self.shape, document_lengths)
        layers = self.products(tokens)
        head = 4 * embedding(self.shape) * supervised_tokens
        recomputed = 0.0
        if self.checkpointing == "full":  # `selective` repeats no matrix product
            recomputed = 2 * (body_linear(self.shape) + self.adapters) * tokens + attention
        return Flops(layers + head + 3 * attention, recomputed)

    def products(self, tokens: int) -> float:
        """Of the decoder layers: 4 for each frozen weight (forward, gradient of the input), 6 for each of LoRA's."""
        return (4 * body_linear(self.shape) + 6 * self.adapters) * tokens


def visible_pairs(document: int, window: int | None) -> int:
    """Pairs of a token and one that it sees, itself included, in a document under a causal window."""
    if window is None or document <= window:
        return document * (document + 1) // 2
    return window * (window + 1) // 2 + (document - window) * window


def attention_forward(shape: ModelShape, document_lengths: Sequence[int]) -> float:
    """Scores and weighted sums of all layers: 4 FLOPs for each pair and each value of a query."""
    windowed = sum(visible_pairs(int(length), shape.window) for length in document_lengths)
    causal = sum(visible_pairs(int(length), None) for length in document_lengths)
    full = shape.layers - shape.sliding_layers
    return 4 * shape.queries * (shape.sliding_layers * windowed + full * causal)
