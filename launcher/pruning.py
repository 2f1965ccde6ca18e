"""Which old runs may go from the head's disk, and what goes with them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemfleet.cluster.run_registry import Run, RunRegistry

from .run_storage import shelf_of, storage_of


@dataclass(frozen=True)
class Removal:
    """What goes of one run. `steps`: its checkpoints that go; None: the run goes as a whole."""

    run_id: str
    folder: Path
    size: int
    steps: tuple[int, ...] | None

    @classmethod
    def of(cls, run_id: str, folder: Path, checkpoints_only: bool) -> Removal:
        """Of a run that has ended; with `checkpoints_only` all but its newest checkpoint that verifies."""
        if not checkpoints_only:
            return cls(run_id, folder, bytes_in(folder) + _bytes_elsewhere(folder), None)
        with shelf_of(folder) as shelf:
            newest, _ = shelf.newest_verified()
            doomed = [m for m in shelf.manifests() if newest is not None and m.step != newest.step]
        return cls(run_id, folder, sum(m.total_bytes for m in doomed), tuple(m.step for m in doomed))


def choose(runs: Sequence[Run], keep: int, ended_before: float) -> list[Run]:
    """Of all runs, newest first: those beyond the first `keep` that ended before this moment."""
    old = [run for run in runs[keep:] if run.state.is_terminal]
    return [run for run in old if run.ended_at is not None and run.ended_at < ended_before]


def carry_out(removal: Removal, registry: RunRegistry) -> None:
    """The registry first: should this be interrupted, what is left are files that nothing names."""
    with shelf_of(removal.folder) as shelf:
        steps = shelf.steps() if removal.steps is None else removal.steps
        if removal.steps is None:
            registry.delete_run(removal.run_id)
        for step in steps:
            if removal.steps is not None:
                registry.remove_checkpoint(removal.run_id, step)
            shelf.remove(step)
    if removal.steps is None:
        shutil.rmtree(removal.folder, ignore_errors=True)


def _bytes_elsewhere(folder: Path) -> int:
    """Of checkpoints that are not below the run's folder."""
    if storage_of(folder) is None:
        return 0
    with shelf_of(folder) as shelf:
        return sum(manifest.total_bytes for manifest in shelf.manifests())


def bytes_in(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() or path.is_symlink())
