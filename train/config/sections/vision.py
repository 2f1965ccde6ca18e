"""The part of the `train` section for pictures, which only multimodal bases see."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..strict import StrictModel


class VisionConfig(StrictModel):
    """How a multimodal base sees the pictures of its data. Without pictures, nothing of it is loaded."""

    train: Annotated[
        Literal["none", "projector"],
        Field(description="`projector`: the projector from the vision tower to the decoder, besides the adapters"),
    ] = "none"
    cache: Annotated[
        Literal["auto", "off"],
        Field(
            description="`auto`: the tower sees each picture once, before training, and the ranks' disks keep what it "
            "made of it if they have room; `off`: it sees the pictures of each step anew"
        ),
    ] = "auto"
