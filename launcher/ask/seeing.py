"""The pictures of a question: read where it is asked, resized and normalised where the model is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from gemfleet.train.config.sections.pictures import PicturesConfig
from gemfleet.train.data.pictures.files import PictureFiles
from gemfleet.train.data.pictures.format import PictureFormat
from gemfleet.train.data.pictures.pixel_file import stacked
from gemfleet.train.data.pictures.resize import resized
from gemfleet.train.data.shapes.conversation import Message, Picture, RowError
from gemfleet.train.errors import UserError
from gemfleet.train.model.vision.tower import normalised
from torch import Tensor

RULES = PicturesConfig()


def read_pictures(paths: Sequence[Path]) -> list[Picture]:
    """The files of `--image`. Raises UserError for one that cannot be read, or is no picture."""
    found = []
    for path in paths:
        real = path.expanduser().resolve()
        picture = PictureFiles(RULES, real.parent).read(str(real))
        if picture.fault is not None:
            raise UserError(f"--image {path}: {' '.join(filter(None, picture.fault))}; name a file that is there")
        found.append(Picture(str(path), picture.content))
    return found


def seen(
    messages: Sequence[Message], ids: Tensor, shown: PictureFormat | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    """What the model is given besides the tokens. ids: [1, T]; shown: how it wants pictures; None: it gets none

    Raises UserError for a picture that cannot be decoded.
    """
    pictures = [picture for message in messages for picture in message.pictures]
    if shown is None or not pictures:
        return {}
    try:
        pixels = stacked([resized(picture, shown, RULES.most_pixels) for picture in pictures])
    except RowError as error:
        raise UserError(f"the picture cannot be shown to the model: {error.reason} ({error.detail})") from error
    types = (ids == shown.soft).long()  # no text becomes a soft token
    return {
        "token_type_ids": types,
        "pixel_values": normalised(torch.from_numpy(pixels).to(ids.device), shown).to(dtype),
    }
