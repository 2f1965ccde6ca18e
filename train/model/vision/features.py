"""What the tower makes of each picture, kept so that it is made once and not once an epoch.

The ranks of a node divide the pictures before training, and each writes its part into its own folder, a file a picture.
All of them read all of it, from the page cache where memory allows. It is the tower's output before the projector: the
smallest there is (0.6 MB a picture of the published models), and it serves a projector that is trained.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import UserError
from ...interfaces import Ints, Pixels
from ...kernels.passes import copy_to
from .tower import Tower

log = logging.getLogger("gemfleet.train")

MOST_OF_DISK = 0.5  # share of the free space that features may take
ROUNDS = 64  # after each, all ranks meet: those of a slower node keep no other waiting longer than a collective may
WORDS: dict[int, Any] = {2: np.int16, 4: np.int32}  # numpy has no bf16


class PictureSource(Protocol):
    """The pictures of a run: a part of `BlockSource`."""

    @property
    def pictures(self) -> Ints: ...

    def pixels(self, ids: Ints) -> Pixels: ...


class PictureFeatures:
    """The tower's output by a picture's id. It runs the tower for one that is not kept.

    The tower is loaded when it is needed, and let go when all pictures are kept.
    """

    def __init__(
        self,
        load_tower: Callable[[], Tower],
        pixels: Callable[[Ints], Pixels],
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """pixels: see `BlockSource.pixels`; shape: of one picture's features: soft tokens, the tower's width"""
        self._seen = 0
        self._load, self._pixels = load_tower, pixels
        self._shape, self._dtype, self._device = shape, dtype, device
        self._tower: Tower | None = None
        self._folders: dict[int, Path] = {}

    @property
    def bytes_of_one(self) -> int:
        return self._shape[0] * self._shape[1] * self._dtype.itemsize

    def take_count(self) -> int:
        """How many pictures the tower has seen since the last call, without those that `keep` has shown it."""
        seen, self._seen = self._seen, 0
        return seen

    def of(self, ids: Ints) -> Tensor:
        """[P, soft tokens, the tower's width] on the device, in the tower's dtype."""
        if not self._folders:
            return torch.stack([self._encode(identity) for identity in ids.tolist()])
        files = [self._folders[identity] / str(identity) for identity in ids.tolist()]
        words = np.stack([np.fromfile(file, WORDS[self._dtype.itemsize]).reshape(self._shape) for file in files])
        (copied,) = copy_to(self._device, (words,))
        return copied.view(self._dtype)

    def keep(self, ids: Ints, folder: Path, progress: Callable[[], None]) -> None:
        """Makes the features of all pictures, unless a disk has no room for them. Collective.

        ids: of all pictures of the run, equal on all ranks; folder: of this rank, which is made
        progress: called for each picture, as a tower may take seconds on a CPU
        """
        started = time.perf_counter()
        folder.mkdir()
        folders, mine = folders_of_node(folder)
        if not self._have_room(len(ids), folder):
            log.warning("the disks have no room for the features of %d pictures: the tower runs in each step", len(ids))
            return
        for part in np.array_split(ids[mine :: len(folders)], ROUNDS):
            for identity in part.tolist():
                progress()
                self._write(identity, folder)
            if dist.is_initialized():
                dist.barrier()
        self._folders = {identity: folders[place % len(folders)] for place, identity in enumerate(ids.tolist())}
        self._tower, self._seen = None, 0
        seconds = time.perf_counter() - started
        log.info("the vision tower saw %d pictures once, on %d ranks, in %.1f s", len(ids), len(folders), seconds)

    def _write(self, identity: int, folder: Path) -> None:
        """Makes the features of one picture, and keeps them. Raises UserError if the disk has become full."""
        words = self._encode(identity).view(torch.int16 if self._dtype.itemsize == 2 else torch.int32)
        try:
            words.cpu().numpy().tofile(folder / str(identity))
        except OSError as error:
            raise UserError(
                f"{folder} has no room left for the features of pictures ({error}); make room, let TMPDIR name a "
                "folder on a larger disk, or set train.vision.cache: off"
            ) from error

    def _encode(self, identity: int) -> Tensor:
        self._tower = self._tower or self._load()
        self._seen += 1
        pixels = torch.from_numpy(self._pixels(np.array([identity], np.int64))[0])
        features: Tensor = self._tower(pixels.to(self._device))
        return features

    def _have_room(self, pictures: int, folder: Path) -> bool:
        """Whether each rank's disk has room for the features of so many pictures. Collective."""
        fits = pictures * self.bytes_of_one <= MOST_OF_DISK * shutil.disk_usage(folder).free
        return all(everywhere(fits))


def folders_of_node(folder: Path) -> tuple[list[Path], int]:
    """The folders of all ranks that this machine shows, in the order of ranks, and the place of ours. Collective."""
    folders = [Path(name) for name in everywhere(str(folder))]
    here = [path for path in folders if path.is_dir()]
    return here, here.index(folder)


def everywhere(value: Any) -> list[Any]:
    """The values of all ranks. Collective."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
