"""Makes small copies of prepared pictures, for people."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from io import BytesIO
from itertools import islice

import numpy as np
from gemfleet.train.interfaces import Pixels

SIDE = 96  # pixels of the longer side
MOST = 8  # pictures of an example


def thumbnails(pictures: Iterable[Pixels]) -> list[str]:
    """Small copies of the first pictures, as `data:` addresses of JPEG files. pictures: uint8 [3, H, W] each"""
    return [_thumbnail(pixels) for pixels in islice(pictures, MOST)]


def _thumbnail(pixels: Pixels) -> str:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.thumbnail((SIDE, SIDE))
    file = BytesIO()
    image.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
