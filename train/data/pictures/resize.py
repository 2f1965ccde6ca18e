"""Decodes and resizes pictures as transformers does without torchvision: its `load_image`, then Pillow's resizing."""

from __future__ import annotations

import warnings
from functools import cache
from io import BytesIO

import numpy as np

from ...interfaces import Pixels
from ..shapes.conversation import Picture, RowError
from .format import PictureFormat

# What Pillow decodes by itself. It would start other programs for some formats, as for EPS.
DECODED = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "TGA", "ICO", "JPEG2000", "AVIF")
BROKEN = "a picture that cannot be decoded"


def resized(picture: Picture, wanted: PictureFormat, most_pixels: int) -> Pixels:
    """The pixels of a picture in the model's size, uint8 [3, H, W]. Of an animation, the first image.

    It is turned as its EXIF says, and its transparency is dropped. Raises RowError if it cannot be used.
    """
    from PIL import Image, ImageOps

    if picture.fault is not None:
        raise RowError(*picture.fault)
    height, width = wanted.size
    try:
        with Image.open(BytesIO(picture.content), formats=_decoded()) as opened:
            if opened.width * opened.height > most_pixels:
                raise _too_large(picture, f"{opened.width} x {opened.height}", most_pixels)
            upright = ImageOps.exif_transpose(opened).convert("RGB")
        found = np.asarray(upright.resize((width, height), resample=Image.Resampling(wanted.resample)))
    except RowError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(picture, "far more", most_pixels) from error
    except Exception as error:  # a damaged file causes many kinds in the library
        raise RowError(BROKEN, f"{picture.name}: {type(error).__name__}") from error
    return np.ascontiguousarray(found.transpose(2, 0, 1))


@cache
def _decoded() -> list[str]:
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `most_pixels` decides
    Image.init()
    return [name for name in DECODED if name in Image.OPEN]


def _too_large(picture: Picture, pixels: str, most: int) -> RowError:
    return RowError(
        f"a picture of more than {most:,} pixels (train.data.pictures.most_pixels)", f"{picture.name}: {pixels}"
    )
