"""Committed checkpoints of one run: what a folder and an object store have in common."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import StoreError
from .manifest import Manifest, least

LOOKS = 5
COMMITTED = re.compile(r"checkpoint-(?P<step>\d+)")
Fingerprint = tuple[tuple[int, int], ...]


class Shelf(ABC):
    """A checkpoint is on the shelf when, and only when, its manifest is. Readers go by manifests only."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Manifest, Fingerprint]] = {}  # what this process hashed, and its fingerprint then

    @abstractmethod
    def steps(self) -> list[int]:
        """The steps that have anything here, ascending, also without a manifest or with a damaged one."""

    @abstractmethod
    def manifest(self, step: int) -> Manifest:
        """The manifest of a checkpoint. StoreError when it cannot be read."""

    @abstractmethod
    def verify(self, manifest: Manifest) -> None:
        """Reads every file. StoreError names the first that is missing or not what the manifest says."""

    @abstractmethod
    def fingerprint(self, manifest: Manifest) -> Fingerprint:
        """Sizes and times of change of its files. While they stay the same, nobody wrote to the files."""

    @abstractmethod
    def publish(self, manifest: Manifest, folder: Path) -> None:
        """Takes over the verified files in `folder`, the manifest last. A damaged checkpoint of the same step goes."""

    @abstractmethod
    def remove(self, step: int) -> None:
        """Removes a checkpoint; what is left midway never looks like a damaged one. StoreError when it cannot."""

    @abstractmethod
    def sweep(self) -> list[str]:
        """Removes what has no manifest. Returns the names."""

    @abstractmethod
    def probe(self) -> None:
        """Writes something small and removes it. StoreError or OSError when that fails."""

    @abstractmethod
    def at_hand(self, step: int) -> Path:
        """A folder of this machine with the whole checkpoint. Read from it; never write to it."""

    @abstractmethod
    def location(self, step: int) -> str:
        """Where a checkpoint is, for people: a path or an address."""

    def manifests(self) -> list[Manifest]:
        """The committed checkpoints by ascending step, without those whose manifest cannot be read."""
        return [found for _, found in self._read_all() if isinstance(found, Manifest)]

    def newest_verified(self) -> tuple[Manifest | None, list[str]]:
        """The newest checkpoint whose every file verifies, and a sentence for each newer one that is damaged.

        A checkpoint that somebody removes meanwhile is not damaged: a newer one exists then, so it looks again at all.
        """
        for _ in range(LOOKS):
            damaged: list[str] = []
            changed = False
            for step, found in reversed(self._read_all()):
                problem = self.problem(found)
                if isinstance(found, Manifest) and problem is None:
                    return found, damaged
                if self._changed(step, found):
                    changed = True
                else:
                    damaged.append(f"checkpoint-{step}: {problem}")
            if not changed:
                break
        return None, damaged

    def verify_all(self) -> list[tuple[str, str | None]]:
        """Each checkpoint by ascending step, with what is wrong with it; None when it is whole.

        One that is removed meanwhile is left out: the retention of a run that goes on may do that.
        """
        each = [(step, found, self.problem(found)) for step, found in self._read_all()]
        kept = [(step, problem) for step, found, problem in each if not problem or not self.gone(step, found)]
        return [(f"checkpoint-{step}", problem) for step, problem in kept]

    def gone(self, step: int, found: Manifest | str) -> bool:
        """Whether a checkpoint that was found is gone now. `found`: see `_read_all`."""
        return step not in self.steps()

    def _changed(self, step: int, found: Manifest | str) -> bool:
        """Whether a checkpoint that has a problem is gone now, or another one has taken its place."""
        if self.gone(step, found):
            return True
        try:
            return isinstance(found, Manifest) and self.manifest(step) != found
        except StoreError:
            return False

    def committed(self, step: int) -> Manifest | None:
        """The checkpoint of this step; None when it is not here or not whole."""
        try:
            manifest = self.manifest(step)
            self.verify(manifest)
        except StoreError:
            return None
        return manifest

    def retain(self, keep: int, best_of: str | None = None) -> list[int]:
        """Removes all but the newest `keep` checkpoints. Returns the removed steps.

        The newest whole checkpoint always stays, and so does the one with the least metric `best_of`. Nothing goes when
        none is whole.
        """
        manifests = self.manifests()
        doomed = doomed_steps(manifests, keep, best_of)
        if not doomed:
            return []
        newest = next((manifest.step for manifest in reversed(manifests) if self._is_whole(manifest)), None)
        doomed = [step for step in doomed if newest is not None and step != newest]
        removed = []
        for step in doomed:
            with suppress(StoreError):  # what cannot be removed now is tried again after the next commit
                self.remove(step)
                removed.append(step)
        return removed

    def remember(self, manifest: Manifest) -> None:
        """Notes that all its bytes were compared with their hashes just now."""
        self._known[manifest.step] = manifest, self.fingerprint(manifest)

    def _is_whole(self, manifest: Manifest) -> bool:
        """As `verify`, but it does not read files again that this process hashed and nobody touched since."""
        try:
            if self._known.get(manifest.step) != (manifest, self.fingerprint(manifest)):
                self.verify(manifest)
                self.remember(manifest)
        except StoreError:
            return False
        return True

    def problem(self, found: Manifest | str) -> str | None:
        """What is wrong with a checkpoint; None when every file verifies. `found`: see `_read_all`."""
        if isinstance(found, str):
            return found
        try:
            self.verify(found)
        except StoreError as error:
            return str(error)
        return None

    def _read_all(self) -> list[tuple[int, Manifest | str]]:
        """Each checkpoint by ascending step, with its manifest or with what is wrong with the manifest."""
        found: list[tuple[int, Manifest | str]] = []
        for step in self.steps():
            try:
                found.append((step, self.manifest(step)))
            except StoreError as error:
                found.append((step, str(error)))
        return found


def doomed_steps(manifests: Sequence[Manifest], keep: int, best_of: str | None) -> list[int]:
    """Which checkpoints retention removes: all but the newest `keep`, and but the one with the least metric.

    manifests: by ascending step; best_of: the metric, None for no metric
    """
    best = None if best_of is None else least(manifests, best_of)
    old = manifests[: max(0, len(manifests) - max(1, keep))]
    return [m.step for m in old if best is None or m.step != best.step]
