"""What a sweep leaves on the head: `sweeps/<id>/` with what was asked, its trials, and what its process needs to go on.

A trial is an ordinary run with the id `<sweep>-<number>`. Imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from gemfleet.cluster.driver import is_held
from gemfleet.cluster.durable import write_durably
from gemfleet.train.errors import UserError
from pydantic import BaseModel, ValidationError

SWEEP_FILE = "sweep.json"
CONFIG_FILE = "config.yaml"  # the configuration of all trials, with the values that the person gave
STUDY_FILE = "optuna.journal"
STOP_FILE = "stop"  # somebody asked the sweep to stop; a resumed sweep removes it


class Range(BaseModel):
    """Numbers from `low` to `high`, both included. Whole numbers where both are; log: equally likely in each decade"""

    low: int | float
    high: int | float
    log: bool


class Trial(BaseModel):
    """One trial.

    settings: by field, the value as `--set` takes it
    pruned: why the sweep ended it before its last step; empty where it did not
    failed: why its process ended without a run; empty where it did not
    removed: how its run had ended, `succeeded` or `pruned`, before it was removed from this disk; empty where it was
        not; value, best_step: its lowest loss and the step of that, of a removed run alone
    """

    number: int
    settings: dict[str, str]
    pruned: str = ""
    failed: str = ""
    removed: str = ""
    value: float | None = None
    best_step: int | None = None


class Sweep(BaseModel):
    """What was asked, and the trials so far.

    launched_from: where relative paths of the configuration begin; created_at: seconds since the epoch
    metric: `eval_loss`, or `eval_NAME_loss` of one evaluation set; the lowest is the best
    grid, ranges: the values to try, by field; wanted: the number of trials
    sampler: who chooses; seed: of its choices; parallel: trials at once, None: as many as the cluster has room for
    """

    id: str
    name: str
    created_at: float
    launched_from: str
    metric: str
    grid: dict[str, list[str]]
    ranges: dict[str, Range]
    wanted: int
    sampler: Literal["grid", "random", "tpe"]
    seed: int
    parallel: int | None
    prune: bool
    trials: list[Trial] = []

    @property
    def fields(self) -> list[str]:
        """The fields that differ between trials."""
        return [*self.grid, *self.ranges]

    def run_id(self, trial: Trial) -> str:
        """The id of the trial's run."""
        return self.id_of(trial.number)

    def id_of(self, number: int) -> str:
        """The id of the run of the trial with this number."""
        return f"{self.id}-{number:03}"


def sweep_folder(home: Path, sweep_id: str) -> Path:
    return home / "sweeps" / sweep_id


def read_sweep(home: Path, sweep_id: str) -> Sweep | None:
    """The sweep of this id. None where there is none, or where its file is damaged."""
    try:
        return Sweep.model_validate_json((sweep_folder(home, sweep_id) / SWEEP_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def write_sweep(home: Path, sweep: Sweep) -> None:
    """Replace the sweep's file in one step."""
    folder = sweep_folder(home, sweep.id)
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / SWEEP_FILE, sweep.model_dump_json(indent=2).encode())


def all_sweeps(home: Path) -> Iterator[Sweep]:
    """All sweeps, the newest first."""
    found = [read_sweep(home, path.parent.name) for path in home.glob(f"sweeps/*/{SWEEP_FILE}")]
    yield from sorted((one for one in found if one), key=lambda one: one.created_at, reverse=True)


def find_sweep(home: Path, prefix: str) -> Sweep | None:
    """The sweep of this id, or the only one whose id begins so. None for anything else, such as the id of a run.

    Raises UserError where several sweeps begin so.
    """
    if whole := read_sweep(home, prefix):
        return whole
    if prefix == "latest" or (home / "runs" / prefix).is_dir():
        return None
    matching = [one for one in all_sweeps(home) if one.id.startswith(prefix)]
    if len(matching) > 1:
        ids = ", ".join(one.id for one in matching[:3])
        raise UserError(f"{len(matching)} sweeps begin with {prefix!r} ({ids}); give more of the id")
    return matching[0] if matching else None


def sweep_of(home: Path, run_id: str) -> str | None:
    """The id of the sweep of which a run is a trial. None for any other run."""
    sweep_id, _, number = run_id.rpartition("-")
    there = number.isdigit() and (sweep_folder(home, sweep_id) / SWEEP_FILE).is_file()
    return sweep_id if there else None


def ask_to_stop(home: Path, sweep_id: str) -> None:
    """The sweep's process begins no further trial. What runs is stopped by whoever asks."""
    (sweep_folder(home, sweep_id) / STOP_FILE).touch()


def stop_asked(home: Path, sweep_id: str) -> bool:
    return (sweep_folder(home, sweep_id) / STOP_FILE).exists()


def take_stop_back(home: Path, sweep_id: str) -> None:
    (sweep_folder(home, sweep_id) / STOP_FILE).unlink(missing_ok=True)


def is_driven(home: Path, sweep_id: str) -> bool:
    """Whether a living process carries the sweep out."""
    return is_held(sweep_folder(home, sweep_id))


def launched_from(sweep: Sweep) -> Path:
    """The folder from which the sweep was launched, or this process's folder if that one is gone."""
    return Path(sweep.launched_from) if os.path.isdir(sweep.launched_from) else Path.cwd()
