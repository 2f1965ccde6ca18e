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
from ...interfaces import FeatureKeeper, Ints, Pixels
from ...kernels.passes import copy_to
from .tower import Tower

log = logging.getLogger("gemfleet.train")

MOST_OF_DISK = 0.5  # share of the free space that features may take
AT_ONCE = 16  # so many features travel to and from the head together
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
        self._shape, self.dtype, self.device = shape, dtype, device
        self._tower: Tower | None = None
        self._folders: dict[int, Path] = {}

    @property
    def bytes_of_one(self) -> int:
        return self._shape[0] * self._shape[1] * self.dtype.itemsize

    def take_count(self) -> int:
        """How many pictures the tower has seen since the last call, without those that `keep` has shown it."""
        seen, self._seen = self._seen, 0
        return seen

    def of(self, ids: Ints) -> Tensor:
        """[P, soft tokens, the tower's width] on the device, in the tower's dtype."""
        if not self._folders:
            return torch.stack([self._encode(identity) for identity in ids.tolist()])
        files = [self._folders[identity] / str(identity) for identity in ids.tolist()]
        words = np.stack([np.fromfile(file, WORDS[self.dtype.itemsize]).reshape(self._shape) for file in files])
        (copied,) = copy_to(self.device, (words,))
        return copied.view(self.dtype)

    def keep(
        self,
        ids: Ints,
        folder: Path,
        progress: Callable[[], None],
        elsewhere: FeatureKeeper | None = None,
        key: str = "",
    ) -> None:
        """Brings the features of all pictures to this node, unless a disk has no room for them. Collective.

        ids: of all pictures of the run, equal on all ranks; folder: of this rank, which is made
        progress: called for each picture, as a tower may take seconds on a CPU
        elsewhere: has those of other runs and nodes, and gets those that are made here; key: see `tower_key`
        """
        started = time.perf_counter()
        folder.mkdir()
        folders, mine, before = folders_of_node(folder)
        if not self._have_room(len(ids), folder):
            log.warning("the disks have no room for the features of %d pictures: the tower runs in each step", len(ids))
            return
        own = ids[mine :: len(folders)]
        own = np.roll(own, -int(len(own) * before))  # nodes begin at other places, so each finds what others have made
        made = 0
        for part in np.array_split(own, ROUNDS):
            for first in range(0, len(part), AT_ONCE):
                made += self._bring(part[first : first + AT_ONCE].tolist(), folder, progress, elsewhere, key)
            if dist.is_initialized():
                dist.barrier()
        self._folders = {identity: folders[place % len(folders)] for place, identity in enumerate(ids.tolist())}
        self._tower, self._seen = None, 0
        told = f" (of this rank's {len(own)}, the head had {len(own) - made})" if elsewhere else ""
        seconds = time.perf_counter() - started
        log.info(
            "the vision tower saw %d pictures once, on %d ranks, in %.1f s%s", len(ids), len(folders), seconds, told
        )

    def _bring(
        self, ids: list[int], folder: Path, progress: Callable[[], None], elsewhere: FeatureKeeper | None, key: str
    ) -> int:
        """Writes the features of some pictures into the folder. Returns how many of them the tower has made."""
        found = {} if elsewhere is None else elsewhere.fetch(key, ids)
        made: dict[int, bytes] = {}
        for identity in ids:
            progress()
            content = found.get(identity, b"")
            if len(content) != self.bytes_of_one:
                content = made[identity] = self._encode(identity).view(torch.uint8).cpu().numpy().tobytes()
            _write(content, folder / str(identity))
        if elsewhere is not None and made:
            elsewhere.put(key, made)
        return len(made)

    def _encode(self, identity: int) -> Tensor:
        self._tower = self._tower or self._load()
        self._seen += 1
        pixels = torch.from_numpy(self._pixels(np.array([identity], np.int64))[0])
        features: Tensor = self._tower(pixels.to(self.device))
        return features

    def _have_room(self, pictures: int, folder: Path) -> bool:
        """Whether each rank's disk has room for the features of so many pictures. Collective."""
        fits = pictures * self.bytes_of_one <= MOST_OF_DISK * shutil.disk_usage(folder).free
        return all(everywhere(fits))


def folders_of_node(folder: Path) -> tuple[list[Path], int, float]:
    """The folders of all ranks that this machine shows, in the order of ranks, and the place of ours. Collective.

    The last value is the share of all ranks that come before this machine's first.
    """
    folders = [Path(name) for name in everywhere(str(folder))]
    here = [path for path in folders if path.is_dir()]
    return here, here.index(folder), folders.index(here[0]) / len(folders)


def _write(content: bytes, path: Path) -> None:
    """Raises UserError if the disk has become full."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"{path.parent} has no room left for the features of pictures ({error}); make room, let TMPDIR name a "
            "folder on a larger disk, or set train.vision.cache: off"
        ) from error


def everywhere(value: Any) -> list[Any]:
    """The values of all ranks. Collective."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
