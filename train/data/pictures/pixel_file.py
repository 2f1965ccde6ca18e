"""Pictures as plain pixels in one file, found by their ids. Equal pictures have one id and are stored once."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from typing import BinaryIO

import numpy as np

from ...config.home import gemfleet_home
from ...interfaces import Ints, Pixels


def picture_id(pixels: Pixels) -> int:
    """The id of a picture: 63 bits of a digest of its size and pixels."""
    digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stacked(pictures: Sequence[Pixels]) -> Pixels:
    """Pictures of one size in one array, uint8 [P, 3, H, W]. Without any, height and width are 0."""
    return np.stack(pictures) if pictures else np.empty((0, 3, 0, 0), np.uint8)


class PixelFile:
    """A file of pictures of one size, uint8 [3, H, W] each. Threads may read it at the same time."""

    def __init__(self, file: BinaryIO, size: tuple[int, int], ids: Iterable[int] = ()) -> None:
        """file: open for reading, and for writing if pictures are added; size: height and width in pixels
        ids: of the pictures that it holds already, in order
        """
        self.size = size
        self._file = file
        self._places = {one: place for place, one in enumerate(ids)}

    @staticmethod
    def temporary(size: tuple[int, int]) -> PixelFile:
        """An empty file without a name, which goes with this process. It is not in `/tmp`, which may be memory."""
        folder = gemfleet_home() / "cache"
        folder.mkdir(parents=True, exist_ok=True)
        return PixelFile(tempfile.TemporaryFile(dir=folder), size)

    @property
    def ids(self) -> Ints:
        """Of all pictures, in the order of the file."""
        return np.fromiter(self._places, np.int64, len(self._places))

    @property
    def picture_bytes(self) -> int:
        return 3 * self.size[0] * self.size[1]

    def add(self, identity: int, pixels: Pixels) -> None:
        """Adds a picture, unless it is there. Raises OSError if the disk is full."""
        if identity not in self._places:
            place = len(self._places)
            if os.pwrite(self._file.fileno(), pixels.tobytes(), place * self.picture_bytes) < self.picture_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._places[identity] = place

    def pixels(self, identity: int) -> Pixels:
        """The pixels of one picture. Raises KeyError if it is not there."""
        content = os.pread(self._file.fileno(), self.picture_bytes, self._places[identity] * self.picture_bytes)
        return np.frombuffer(content, np.uint8).reshape(3, *self.size)
