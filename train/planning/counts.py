"""Counts parameters exactly, from the shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..errors import UserError
from .shapes import ModelShape, VisionShape

Targets = Literal["all-linear"] | Sequence[str]


def projections(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each linear layer in one decoder layer, by its name."""
    hidden, inner, queries, keys = shape.hidden, shape.inner, shape.queries, shape.keys
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def layer_linear(shape: ModelShape) -> int:
    """Weights of the linear layers in one decoder layer."""
    return sum(inputs * outputs for inputs, outputs in projections(shape).values())


def layer_parameters(shape: ModelShape) -> int:
    """All weights of one decoder layer: projections, four norms of the hidden size, norms of queries and keys."""
    return layer_linear(shape) + 4 * shape.hidden + 2 * shape.head_dim


def body_linear(shape: ModelShape) -> int:
    """Linear weights of all decoder layers. FLOPs count them, and quantisation applies to them."""
    return shape.layers * layer_linear(shape)


def embedding(shape: ModelShape) -> int:
    return shape.vocabulary * shape.hidden


def language_parameters(shape: ModelShape) -> int:
    """All weights of the language model. A tied head is the embedding and counts once."""
    tables = embedding(shape) * (1 if shape.tied else 2)
    return tables + shape.layers * layer_parameters(shape) + shape.hidden


def vision_parameters(shape: ModelShape) -> int:
    """Weights of the vision tower and its projector; 0 for text-only checkpoints."""
    if shape.vision is None:
        return 0
    return tower_parameters(shape.vision) + projector_parameters(shape)


def projector_parameters(shape: ModelShape) -> int:
    """Weights between a vision tower and the decoder; 0 for text-only checkpoints."""
    return 0 if shape.vision is None else shape.vision.hidden * shape.hidden + shape.vision.hidden


def tower_parameters(vision: VisionShape) -> int:
    hidden, inner = vision.hidden, vision.inner
    embeddings = 3 * vision.patch_pixels**2 * hidden + hidden + vision.patches * hidden
    attention, norms = 4 * (hidden * hidden + hidden), 2 * 2 * hidden
    mlp = hidden * inner + inner + inner * hidden + hidden
    return embeddings + vision.layers * (attention + norms + mlp) + 2 * hidden


def target_sides(shape: ModelShape, targets: Targets) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each projection in one layer that gets an adapter. Raises UserError for other modules."""
    known = projections(shape)
    names = list(known) if targets == "all-linear" else list(targets)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"train.lora.target_modules names {unknown[0]!r}, whose memory the plan cannot tell; "
            f"use `all-linear` or some of: {', '.join(known)}"
        )
    return {name: known[name] for name in names}


def lora_layer(shape: ModelShape, rank: int, targets: Targets) -> int:
    """Adapter parameters of one decoder layer: each A is [rank, inputs], each B [outputs, rank]."""
    return rank * sum(inputs + outputs for inputs, outputs in target_sides(shape, targets).values())


def lora_parameters(shape: ModelShape, rank: int, targets: Targets) -> int:
    return shape.layers * lora_layer(shape, rank, targets)
