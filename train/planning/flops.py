"""Counts the FLOPs of a LoRA training step from its documents. A multiply-add counts as two.

Model FLOPs are those the mathematics needs: forward, gradients of activations, gradients of adapters. The frozen base
gets no gradient, which saves a third of the usual 6 N. Hardware FLOPs include what activation checkpointing computes a
second time. Padding counts in neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..context.shares import Cost
from .counts import body_linear, embedding
from .options import Checkpointing
from .shapes import ModelShape


@dataclass(frozen=True)
class Flops:
    """model: needed by the step; recomputed: added by activation checkpointing"""

    model: float
    recomputed: float = 0.0

    @property
    def hardware(self) -> float:
        return self.model + self.recomputed


@dataclass(frozen=True)
class FlopCounter:
    """adapters: number of LoRA parameters in the whole model; checkpointing: the mode of the layers"""

    shape: ModelShape
    adapters: int
    checkpointing: Checkpointing = "off"

    def count(self, document_lengths: Sequence[int], supervised_tokens: int, pictures: int = 0) -> Flops:
        """The FLOPs of one forward and backward over these documents, without the vision tower's.

        supervised_tokens: tokens that are scored; pictures: whose soft tokens are in the documents
        """
        tokens, attention = sum(document_lengths), attention_forward(self.shape, document_lengths, pictures)
        layers = self.products(tokens)
        head = 4 * embedding(self.shape) * supervised_tokens
        recomputed = 0.0
        if self.checkpointing == "full":  # `selective` repeats no matrix product
            recomputed = 2 * (body_linear(self.shape) + self.adapters) * tokens + attention
        return Flops(layers + head + 3 * attention, recomputed)

    def cost(self) -> Cost:
        """What divides a pass among the ranks of a context group: the model FLOPs of each token, and of each pair."""
        pair = 3 * 4 * self.shape.queries
        full = self.shape.layers - self.shape.sliding_layers
        head = 4 * embedding(self.shape)
        return Cost(self.products(1), head, pair * self.shape.sliding_layers, pair * full, self.shape.window)

    def tower(self, pictures: int) -> float:
        """The FLOPs of the vision tower's forward over so many pictures."""
        vision = self.shape.vision
        if vision is None:
            return 0.0
        weights = vision.layers * (4 * vision.hidden**2 + 2 * vision.hidden * vision.inner)
        weights += 3 * vision.patch_pixels**2 * vision.hidden
        return pictures * (2 * weights * vision.patches + 4 * vision.layers * vision.hidden * vision.patches**2)

    def products(self, tokens: int) -> float:
        """The FLOPs of the decoder layers' products: 4 a token and frozen weight (forward, gradient to the input), 6 a
        token and weight of LoRA."""
        return (4 * body_linear(self.shape) + 6 * self.adapters) * tokens


def visible_pairs(document: int, window: int | None) -> int:
    """The pairs of a token and a token that it sees, itself included, in a document under a causal window."""
    if window is None or document <= window:
        return document * (document + 1) // 2
    return window * (window + 1) // 2 + (document - window) * window


def attention_forward(shape: ModelShape, document_lengths: Sequence[int], pictures: int = 0) -> float:
    """The FLOPs of scores and weighted sums in all layers: 4 for each pair and each value of a query.

    pictures: their soft tokens see later ones of the same picture too
    """
    windowed = sum(visible_pairs(int(length), shape.window) for length in document_lengths)
    causal = sum(visible_pairs(int(length), None) for length in document_lengths)
    full = shape.layers - shape.sliding_layers
    later = 0 if shape.vision is None else pictures * visible_pairs(shape.vision.soft_tokens - 1, None)
    return 4 * shape.queries * (shape.sliding_layers * windowed + full * causal + shape.layers * later)
