"""Removes old runs from the head's disk, with all that belongs to them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gemfleet.cluster.driver import DriverLock
from gemfleet.cluster.durable import REMOVED, set_aside
from gemfleet.cluster.errors import RunConflict
from gemfleet.cluster.registry.run_queries import NO_LIMIT
from gemfleet.cluster.registry.run_registry import Run, RunRegistry

from .checkpoints import shelf_of, storage_of
from .sweep_view import DONE, view_trial
from .sweeps import all_sweeps, is_driven, read_sweep, sweep_folder, sweep_of, write_sweep

ABANDONED_SECONDS = 86_400.0  # a submission without a row after a day never gets one


@dataclass(frozen=True)
class Removal:
    """What goes of one run. size: in bytes; steps: its checkpoints that go, None: the whole run goes"""

    run_id: str
    folder: Path
    size: int
    steps: tuple[int, ...] | None

    @classmethod
    def of(cls, run_id: str, folder: Path, checkpoints_only: bool) -> Removal:
        """The removal of a run that has ended, or with `checkpoints_only` of all but its newest verified checkpoint."""
        if not checkpoints_only:
            size = bytes_in(folder) + bytes_in(submission_of(folder)) + _bytes_elsewhere(folder)
            return cls(run_id, folder, size, None)
        with shelf_of(folder) as shelf:
            newest, _ = shelf.newest_verified()
            doomed = [m for m in shelf.manifests() if newest is not None and m.step != newest.step]
        return cls(run_id, folder, sum(m.total_bytes for m in doomed), tuple(m.step for m in doomed))


def choose(runs: Sequence[Run], keep: int, ended_before: float) -> list[Run]:
    """The runs to remove: all but the first `keep` that ended before `ended_before`. runs: all, the newest first"""
    old = [run for run in runs[keep:] if run.state.is_terminal]
    return [run for run in old if run.ended_at is not None and run.ended_at < ended_before]


def carry_out(removal: Removal, registry: RunRegistry) -> None:
    """Remove the files, then the row: on a full disk the registry can only write after the files are gone.

    It may be interrupted at any time and repeated. Raises RunConflict while another process launches the run.
    """
    home = removal.folder.parent.parent
    if (sweep_id := sweep_of(home, removal.run_id)) and removal.steps is None and is_driven(home, sweep_id):
        raise RunConflict(f"its sweep {sweep_id} goes on; stop it first (`gemfleet stop {sweep_id} --wait`)")
    with _nobody_drives(removal, registry):
        if removal.steps is None:
            if storage_of(removal.folder) is not None:
                with shelf_of(removal.folder) as shelf:
                    for step in shelf.steps():
                        shelf.remove(step)
            remove_folder(removal.folder)
            remove_folder(submission_of(removal.folder))
            _keep_of_trial(removal, registry)
            registry.delete_run(removal.run_id)
            return
        with shelf_of(removal.folder) as shelf:
            for step in removal.steps:
                shelf.remove(step)
                registry.remove_checkpoint(removal.run_id, step)


def _keep_of_trial(removal: Removal, registry: RunRegistry) -> None:
    """Keep in a sweep's file what became of a trial, so that a resumed sweep does not train it again."""
    home = removal.folder.parent.parent
    sweep_id = sweep_of(home, removal.run_id)
    sweep = read_sweep(home, sweep_id) if sweep_id else None
    for trial in sweep.trials if sweep else ():
        if sweep and sweep.run_id(trial) == removal.run_id:
            seen = view_trial(registry, sweep, trial)
            if seen.state in DONE:
                trial.removed, trial.value, trial.best_step = seen.state, seen.value, seen.best_step
                write_sweep(home, sweep)


def clear_rests(home: Path, registry: RunRegistry) -> None:
    """Remove the rest of folders whose removal was interrupted, and submissions and sweeps that have no run."""
    for room in ("runs", "submitted", "sweeps"):
        for folder in home.glob(f"{room}/{REMOVED}*"):
            _delete(folder)
    known = {run.id for run in registry.list_runs(limit=NO_LIMIT)}
    for one in all_sweeps(home):
        old = one.created_at < time.time() - ABANDONED_SECONDS
        if old and not is_driven(home, one.id) and not any(one.run_id(trial) in known for trial in one.trials):
            remove_folder(sweep_folder(home, one.id))
    for folder in home.glob("submitted/[!.]*"):
        if folder.name not in known and folder.lstat().st_mtime < time.time() - ABANDONED_SECONDS:
            remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Rename the folder, so that nobody sees half of it, then delete it. Raises OSError if that fails."""
    doomed = set_aside(folder)
    if doomed is not None:
        _delete(doomed)


def submission_of(run_folder: Path) -> Path:
    """The folder in which the API keeps a submitted run's configuration."""
    return run_folder.parent.parent / "submitted" / run_folder.name


def bytes_in(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() or path.is_symlink())


@contextmanager
def _nobody_drives(removal: Removal, registry: RunRegistry) -> Iterator[None]:
    """Hold the run's lock, so that nobody launches it meanwhile. Raises RunConflict if the run has not ended."""
    try:
        lock = DriverLock(removal.folder, wait_seconds=0.0)
    except OSError:  # there is no folder, or the disk is too full for a lock file
        lock = None
    try:
        state = registry.get_run(removal.run_id).state
        if not state.is_terminal:
            raise RunConflict(f"run {removal.run_id} is {state}; stop it first")
        yield
    finally:
        if lock is not None:
            lock.close()


def _delete(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink()


def _bytes_elsewhere(folder: Path) -> int:
    """The size of checkpoints that are not below the run's folder."""
    if storage_of(folder) is None:
        return 0
    with shelf_of(folder) as shelf:
        return sum(manifest.total_bytes for manifest in shelf.manifests())
