"""Which old runs may go from the head's disk, and what goes with them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemfleet.cluster.checkpoint_store.disk import CheckpointDisk
from gemfleet.cluster.checkpoint_store.manifest import MANIFEST_FILE
from gemfleet.cluster.run_registry import Run, RunRegistry


@dataclass(frozen=True)
class Removal:
    """What goes of one run. `steps`: its checkpoints that go; None: the run goes as a whole."""

    run_id: str
    folders: tuple[Path, ...]
    size: int
    steps: tuple[int, ...] | None

    @classmethod
    def of(cls, run_id: str, folder: Path, checkpoints_only: bool) -> Removal:
        """Of a run that has ended; with `checkpoints_only` all but its newest checkpoint that verifies."""
        if not checkpoints_only:
            whole = (folder,) if folder.exists() else ()
            return cls(run_id, whole, sum(map(bytes_in, whole)), None)
        if not (folder / "checkpoints").is_dir():
            return cls(run_id, (), 0, ())
        disk = CheckpointDisk(folder / "checkpoints")
        newest, _ = disk.newest_verified()
        steps = tuple(m.step for m in disk.manifests() if newest is not None and m.step != newest.step)
        folders = tuple(disk.folder(step) for step in steps)
        return cls(run_id, folders, sum(map(bytes_in, folders)), steps)


def choose(runs: Sequence[Run], keep: int, ended_before: float) -> list[Run]:
    """Of all runs, newest first: those beyond the first `keep` that ended before this moment."""
    old = [run for run in runs[keep:] if run.state.is_terminal]
    return [run for run in old if run.ended_at is not None and run.ended_at < ended_before]


def carry_out(removal: Removal, registry: RunRegistry) -> None:
    """The registry first: should this be interrupted, what is left are files that nothing names."""
    if removal.steps is None:
        registry.delete_run(removal.run_id)
    for step in removal.steps or ():
        registry.remove_checkpoint(removal.run_id, step)
    for folder in removal.folders:
        if removal.steps is not None:
            (folder / MANIFEST_FILE).unlink()  # first, so that half a checkpoint is never taken for a damaged one
        shutil.rmtree(folder, ignore_errors=True)


def bytes_in(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() or path.is_symlink())
