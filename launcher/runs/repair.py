"""Rebuilds a damaged or lost registry from the runs' folders."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemfleet.cluster.checkpoint_store.shelf import Shelf
from gemfleet.cluster.driver import driver_of, is_held
from gemfleet.cluster.errors import ClusterError, RegistryDamaged, UnknownRun
from gemfleet.cluster.registry.registry_salvage import begin_numbers_anew, is_whole, salvage
from gemfleet.cluster.registry.run_database import RUN_PARTS
from gemfleet.cluster.registry.run_records import FACTS_FILE, CheckpointRow, tag_problem
from gemfleet.cluster.registry.run_registry import Run, RunRegistry, RunState
from gemfleet.launcher.config.load import parse_yaml
from gemfleet.train.errors import UserError
from gemfleet.train.step.history import told_early_end

from .checkpoints import shelf_of
from .folder import RESOLVED_FILE

REASON = "the registry was rebuilt from the run's folder"


@dataclass(frozen=True)
class Repaired:
    """aside: where the damaged file is now; salvaged: how many runs it still held; rebuilt: ids of runs from folders"""

    aside: Path | None
    salvaged: int
    rebuilt: tuple[str, ...]


def repair(home: Path) -> Repaired:
    """Make a registry with a row for each run that has a folder. A registry that is whole gets the rows that it lacks.

    Metrics and events that cannot be read are lost. The damaged file stays beside the new one.
    """
    path = home / "gemfleet.db"
    if path.exists() and path.stat().st_size and is_whole(path):
        with suppress(RegistryDamaged):  # whole pages, but not our tables
            return Repaired(None, 0, add_missing(RunRegistry(path), home))
    fresh = home / f".rebuilt-{os.getpid()}.db"
    registry = RunRegistry(fresh)
    try:
        with registry.connect() as db:
            salvaged = salvage(path, db) if path.exists() else 0
            begin_numbers_anew(db)
        rebuilt = add_missing(registry, home)
        aside = _put_aside(path)
        fresh.replace(path)
    finally:
        for left in home.glob(f"{fresh.name}*"):
            left.unlink()
    return Repaired(aside, salvaged, rebuilt)


def add_missing(registry: RunRegistry, home: Path) -> tuple[str, ...]:
    """Add a row for each run's folder without one. Returns their ids, the oldest first."""
    found = [read_folder(folder) for folder in sorted((home / "runs").glob("[!.]*")) if _is_run(folder)]
    added = []
    for run, checkpoints in sorted(found, key=lambda pair: pair[0].created_at):
        try:
            registry.get_run(run.id)
        except UnknownRun:
            registry.restore_run(run, checkpoints, driver_of(home / "runs" / run.id))
            added.append(run.id)
    return tuple(added)


def read_folder(folder: Path) -> tuple[Run, list[CheckpointRow]]:
    """The run that a folder describes, and its checkpoints."""
    config = _text(folder / RESOLVED_FILE) or _text(folder / "config.yaml")
    facts = _facts(folder / FACTS_FILE)
    try:
        with shelf_of(folder) as shelf:
            checkpoints = _checkpoints(shelf)
    except (ClusterError, OSError):  # for example an object store that cannot be reached
        checkpoints = []
    times = [checkpoint.created_at for checkpoint in checkpoints] + [folder.stat().st_mtime]
    state = _state(folder, facts)
    run = Run(
        id=folder.name,
        name=str(facts.get("name") or _name(config) or folder.name),
        state=state,
        reason=str(facts.get("reason") or (REASON if "state" not in facts else "")),
        created_at=_number(facts.get("created_at"), min(times)),
        updated_at=_number(facts.get("updated_at"), max(times)),
        ended_at=_number(facts.get("ended_at"), max(times)) if state.is_terminal else None,
        config=config,
        driver_pid=None,
        driver_started=None,
        stop_requested=False,
        tags=_tags(facts.get("tags")),
        archived=facts.get("archived") is True and state.is_terminal,
    )
    return run, checkpoints


def _state(folder: Path, facts: Mapping[str, Any]) -> RunState:
    """The state in the folder's facts. A run that has not ended is interrupted, unless its driver lives."""
    published = _facts(folder / "output" / "trainer_state.json")
    if "state" in facts:
        state = RunState(facts["state"])
        return state if state.is_terminal or is_held(folder) else RunState.INTERRUPTED
    if is_held(folder):
        return RunState.TRAINING
    if not published:
        return RunState.INTERRUPTED
    done = _number(published.get("global_step"), 0) >= _number(published.get("max_steps"), 0) or ended_early(published)
    return RunState.SUCCEEDED if done else RunState.STOPPED


def ended_early(state: Mapping[str, Any]) -> bool:
    """Whether early stopping ended the training that a `trainer_state.json` is of."""
    history = state.get("log_history")
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history[-1:]):
        return False
    return told_early_end(history) is not None


def _checkpoints(shelf: Shelf) -> list[CheckpointRow]:
    return [
        CheckpointRow(m.step, shelf.location(m.step), m.total_bytes, m.created_at, m.generation)
        for m in shelf.manifests()
    ]


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and any((folder / part).exists() for part in RUN_PARTS)


def _facts(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Empty where there is no file, or where it is damaged."""
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            RunState(found.get("state", "queued"))
            return found
    except (OSError, ValueError):
        pass
    return {}


def _name(config: str) -> str | None:
    try:
        found = parse_yaml(config)
    except (UserError, ValueError):
        return None
    return found.get("name") if isinstance(found, dict) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _tags(value: object) -> dict[str, str]:
    """The tags among what stands there."""
    found = value.items() if isinstance(value, dict) else ()
    return {key: text for key, text in found if isinstance(text, str) and tag_problem(key, text) is None}


def _number(value: object, otherwise: float) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else otherwise


def _put_aside(path: Path) -> Path | None:
    """Rename the damaged file and SQLite's files beside it, which the new one must not use. Returns its new path."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    moved = None
    for suffix in ("-wal", "-shm", ""):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            moved = beside.replace(aside.with_name(aside.name + suffix))
    return moved if moved == aside else None
