"""Tells a person the number format of the frozen base and of the activations.

`choose_dtype` of `train/device/abilities.py` chooses it. Adapters and their optimizer are always in fp32.
"""

from __future__ import annotations

from .schema import Precision


def describe_precision(precision: Precision) -> str:
    """The number format in words, for a place that knows no device yet."""
    automatic = "bf16 where the hardware gains from it, else fp32"
    return {"auto": automatic, "fp16": f"{automatic} (fp16 was asked for)"}.get(precision, precision)


def precision_note(precision: Precision) -> str | None:
    """The sentence that says why another format is taken than the one asked for; None if it is taken."""
    if precision != "fp16":
        return None
    return (
        "train.precision is fp16, whose range Gemma 3's activations overflow: "
        "it is answered with bf16, or with fp32 where the device gains nothing from bf16"
    )
