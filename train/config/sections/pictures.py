"""The `train.data.pictures` section: which pictures the rows of a data set may name, and how large they may be."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..strict import StrictModel

PILLOW_REFUSES = 178_956_970  # pixels, from which on Pillow calls a picture a decompression bomb


class PicturesConfig(StrictModel):
    """Limits on pictures. A row with a picture beyond them is left out and named."""

    folders: Annotated[
        tuple[str, ...],
        Field(strict=False, description="folders from which pictures may be read, beside the data's own folder"),
    ] = ()
    addresses: Annotated[
        bool, Field(description="also read pictures at `file:`, `http:` and `https:` addresses in the rows")
    ] = False
    most_pixels: Annotated[
        int, Field(gt=0, le=PILLOW_REFUSES, description="pixels of the largest picture, before it is resized")
    ] = 89_478_485
    per_example: Annotated[int, Field(gt=0, le=1024, description="pictures of an example")] = 16
