"""What a person is told about the number format of the frozen base and of activations.

The choice itself is `device.choose_dtype`. Adapters and their optimizer are in fp32 in any case.
"""

from __future__ import annotations

from .schema import Precision


def describe_precision(precision: Precision) -> str:
    """What will be computed in, before a device is at hand."""
    automatic = "bf16 where the hardware gains from it, else fp32"
    return {"auto": automatic, "fp16": f"{automatic} (fp16 was asked for)"}.get(precision, precision)


def precision_note(precision: Precision) -> str | None:
    """For a choice that is not carried out to the letter, the sentence that says so; None for any other."""
    if precision != "fp16":
        return None
    return (
        "train.precision is fp16, whose range Gemma 3's activations overflow: "
        "it is answered with bf16, or with fp32 where the device gains nothing from bf16"
    )
