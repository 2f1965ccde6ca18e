"""The pictures of a probe: one of random pixels, with the id 0, in the place of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...interfaces import Ints, Pixels
from ...model.vision.features import PictureFeatures
from ...model.vision.tower import format_of


class OnePicture:
    """A `PictureSource` for the base in a folder."""

    def __init__(self, model_folder: Path) -> None:
        size = format_of(model_folder).size
        self.pictures: Ints = np.zeros(1, np.int64)
        self._pixels: Pixels = np.random.default_rng(0).integers(0, 256, (1, 3, *size)).astype(np.uint8)

    def pixels(self, ids: Ints) -> Pixels:
        return self._pixels[ids]


class KeptPicture(PictureFeatures):
    """Its features as a run has them that keeps them: the tower is not there."""

    def __init__(self, like: PictureFeatures) -> None:
        self.__dict__.update(like.__dict__)
        self._one: Tensor = torch.zeros(self._shape, dtype=self.dtype, device=self.device)

    def of(self, ids: Ints) -> Tensor:
        return self._one.expand(len(ids), -1, -1)
