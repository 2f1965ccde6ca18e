"""Committed checkpoints of one run, wherever they rest: what is the same for a folder and for an object store."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import StoreError
from .manifest import Manifest

LOOKS = 5
COMMITTED = re.compile(r"checkpoint-(?P<step>\d+)")
Fingerprint = tuple[tuple[int, int], ...]


class Shelf(ABC):
    """A checkpoint is here when, and only when, its manifest is. Readers go by manifests only."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Manifest, Fingerprint]] = {}  # hashed by this process, and as they were then

    @abstractmethod
    def steps(self) -> list[int]:
        """Ascending; also of what has no manifest or a damaged one."""

    @abstractmethod
    def manifest(self, step: int) -> Manifest:
        """StoreError when it cannot be read."""

    @abstractmethod
    def verify(self, manifest: Manifest) -> None:
        """Read every file; StoreError naming the first that is missing or not what the manifest says."""

    @abstractmethod
    def fingerprint(self, manifest: Manifest) -> Fingerprint:
        """Sizes and times of change of its files: as long as they stay the same, nobody wrote to them."""

    @abstractmethod
    def publish(self, manifest: Manifest, folder: Path) -> None:
        """Take over the verified files in `folder`, the manifest last; a damaged one of the same step goes."""

    @abstractmethod
    def remove(self, step: int) -> None:
        """In such an order that half a checkpoint is never taken for a damaged one. StoreError when it cannot be."""

    @abstractmethod
    def sweep(self) -> list[str]:
        """Remove what no manifest names; returns the names."""

    @abstractmethod
    def probe(self) -> None:
        """Write something small and remove it; StoreError or OSError when that cannot be done."""

    @abstractmethod
    def at_hand(self, step: int) -> Path:
        """A folder of this machine with the whole checkpoint in it, to read from and never to write to."""

    @abstractmethod
    def location(self, step: int) -> str:
        """For people."""

    def manifests(self) -> list[Manifest]:
        """Committed checkpoints by ascending step; one whose manifest cannot be read is left out."""
        return [found for _, found in self._read_all() if isinstance(found, Manifest)]

    def newest_verified(self) -> tuple[Manifest | None, list[str]]:
        """The newest checkpoint whose every file verifies, and a sentence for each newer one that is damaged.

        What is removed meanwhile is not damaged; there is a newer one then, so that all are looked at again.
        """
        for _ in range(LOOKS):
            damaged: list[str] = []
            changed = False
            for step, found in reversed(self._read_all()):
                problem = self._problem(found)
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
        """Each checkpoint by ascending step, with what is wrong with it; None for one that is whole.

        One that is removed meanwhile, as by the retention of a run that goes on, is left out.
        """
        each = [(step, found, self._problem(found)) for step, found in self._read_all()]
        kept = [(step, problem) for step, found, problem in each if not problem or not self.gone(step, found)]
        return [(f"checkpoint-{step}", problem) for step, problem in kept]

    def gone(self, step: int, found: Manifest | str) -> bool:
        """Whether the checkpoint that was found is not there any more. `found`: see `_read_all`."""
        return step not in self.steps()

    def _changed(self, step: int, found: Manifest | str) -> bool:
        """Whether the checkpoint that has a problem is not there any more, or another one has taken its place."""
        if self.gone(step, found):
            return True
        try:
            return isinstance(found, Manifest) and self.manifest(step) != found
        except StoreError:
            return False

    def committed(self, step: int) -> Manifest | None:
        """The checkpoint of this step, if it is here and whole."""
        try:
            manifest = self.manifest(step)
            self.verify(manifest)
        except StoreError:
            return None
        return manifest

    def retain(self, keep: int, best_of: str | None = None) -> list[int]:
        """Remove all but the newest `keep` checkpoints; returns the steps removed.

        The newest that is whole always stays, and the one with the least metric `best_of`, where any has it. Without
        one that is whole nothing goes.
        """
        manifests = self.manifests()
        doomed = doomed_steps(manifests, keep, best_of)
        if not doomed:
            return []
        newest = next((manifest.step for manifest in reversed(manifests) if self._is_whole(manifest)), None)
        doomed = [step for step in doomed if newest is not None and step != newest]
        removed = []
        for step in doomed:
            with suppress(StoreError):  # one that cannot be removed now is tried again after the next
                self.remove(step)
                removed.append(step)
        return removed

    def remember(self, manifest: Manifest) -> None:
        """Its bytes were compared with their hashes just now."""
        self._known[manifest.step] = manifest, self.fingerprint(manifest)

    def _is_whole(self, manifest: Manifest) -> bool:
        """As `verify`, but files that this process has hashed and nobody has touched since are not read again."""
        try:
            if self._known.get(manifest.step) != (manifest, self.fingerprint(manifest)):
                self.verify(manifest)
                self.remember(manifest)
        except StoreError:
            return False
        return True

    def _problem(self, found: Manifest | str) -> str | None:
        if isinstance(found, str):
            return found
        try:
            self.verify(found)
        except StoreError as error:
            return str(error)
        return None

    def _read_all(self) -> list[tuple[int, Manifest | str]]:
        """Each checkpoint by ascending step, with its manifest or with what is wrong with that."""
        found: list[tuple[int, Manifest | str]] = []
        for step in self.steps():
            try:
                found.append((step, self.manifest(step)))
            except StoreError as error:
                found.append((step, str(error)))
        return found


def doomed_steps(manifests: Sequence[Manifest], keep: int, best_of: str | None) -> list[int]:
    """Which of these checkpoints, by ascending step, are neither among the newest `keep` nor the best by a metric."""
    measured = [m for m in manifests if best_of is not None and best_of in m.metrics]
    best = min(measured, key=lambda m: m.metrics[best_of or ""], default=None)
    old = manifests[: max(0, len(manifests) - max(1, keep))]
    return [m.step for m in old if best is None or m.step != best.step]
