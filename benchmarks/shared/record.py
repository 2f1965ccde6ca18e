"""The one format of results: a JSON file for each case of a suite, with everything needed to judge it or take it again.

What each of a case's runs found is kept raw; figures, mostly quantiles, are made from all of them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gemfleet.train.errors import UserError
from pydantic import BaseModel, ConfigDict, ValidationError

from . import machine

SCHEMA_VERSION: Literal[2] = 2


class Run(BaseModel):
    """One measurement of a case.

    step_seconds: every step, warm-up included; empty where a case has no steps
    tokens:       non-pad tokens of each of them over all ranks; losses: the mean per supervised token, where told
    facts:        what else was measured, by name
    error:        why it ended early; its figures then count for nothing
    """

    model_config = ConfigDict(extra="forbid")
    repeat: int
    started_at: str
    step_seconds: list[float] = []
    tokens: list[int] = []
    losses: list[float] = []
    facts: dict[str, Any] = {}
    error: str | None = None


class Record(BaseModel):
    """One case. config: all that decides what was measured; warmup: how many steps of each run are left out."""

    model_config = ConfigDict(extra="forbid")
    schema_version: Literal[2] = SCHEMA_VERSION
    suite: str
    case: str
    finished_at: str
    command: str
    git_commit: str | None
    hardware: dict[str, Any]
    versions: dict[str, str]
    config: dict[str, Any]
    warmup: int = 0
    runs: list[Run] = []
    results: dict[str, Any] = {}

    @property
    def good_runs(self) -> list[Run]:
        return [run for run in self.runs if run.error is None]

    def measured_seconds(self) -> list[list[float]]:
        """Step times of each run that ended well, without its warm-up."""
        return [run.step_seconds[self.warmup :] for run in self.good_runs]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_record(suite: str, case: str, config: dict[str, Any], warmup: int = 0, **parts: Any) -> Record:
    """A record of this machine, this source and this command, as of now."""
    given = {"suite": suite, "case": case, "config": config, "warmup": warmup, "finished_at": now()}
    return Record.model_validate({**machine.facts(), **given, **parts})


def write_case(record: Record, folder: Path) -> Path:
    """`<folder>/<suite>-<case>.json`, in one rename: an interrupted suite leaves whole records only."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / case_file(record.suite, record.case)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return partial.replace(path)


def quantile(values: Sequence[float], share: float) -> float:
    """Interpolated between neighbours; nan of nothing."""
    return float(np.quantile(values, share)) if len(values) else math.nan


def median(values: Sequence[float]) -> float:
    return quantile(values, 0.5)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with the 10th and 90th percentile."""
    return {name: quantile(values, share) for name, share in (("median", 0.5), ("p10", 0.1), ("p90", 0.9))}


def case_file(suite: str, case: str) -> str:
    return f"{suite}-{re.sub(r'[^A-Za-z0-9._-]+', '_', case)}.json"


def read_record(path: Path) -> Record:
    """Raises UserError for a file that is no record of this schema."""
    try:
        return Record.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, ValidationError) as error:
        why = f"no benchmark record of schema {SCHEMA_VERSION}: {str(error).strip().splitlines()[0]}"
        raise UserError(f"{path} is {why}; measure again with this version, or leave the file out") from error


def read_records(place: Path) -> list[Record]:
    """All records of a file or of a folder and those below it, by name. Raises UserError where there are none."""
    if paths := [place] if place.is_file() else sorted(place.rglob("*.json")):
        return [read_record(path) for path in paths]
    raise UserError(f"there are no benchmark records in {place}; run `gemfleet bench SUITE --out {place}` first")
