"""The part of the `train` section for pictures, which only multimodal bases see."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..strict import Size, StrictModel, parse_bytes


class VisionConfig(StrictModel):
    """How a multimodal base sees the pictures of its data. Without pictures, nothing of it is loaded."""

    train: Annotated[
        Literal["none", "projector"],
        Field(description="`projector`: the projector from the vision tower to the decoder, besides the adapters"),
    ] = "none"
    cache: Annotated[
        Literal["auto", "off", "head"],
        Field(
            description="`auto`: the tower sees each picture once, before training, and the ranks' disks keep what it "
            "made of it if they have room; `head`: so does the head, for other runs; `off`: it sees the pictures of "
            "each step anew"
        ),
    ] = "auto"
    head_cache: Annotated[
        Size,
        Field(
            description="size of all features that the head keeps under `cache: head`: bytes, or a number with KiB, "
            "MiB or GiB; 1 GiB holds about 1,800 pictures"
        ),
    ] = "20GiB"

    @property
    def head_cache_bytes(self) -> int:
        return parse_bytes(self.head_cache)
