"""Decides whether a run can be resumed: whether work is left, and whether its newest checkpoint still fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.launcher.config.load import load_config
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.runs.checkpoints import shelf_of
from gemfleet.launcher.runs.folder import RESOLVED_FILE
from gemfleet.launcher.runs.registry import early_end_of
from gemfleet.train.checkpoint.lineage import Lineage, base_digest, changes_since, refuse_other_shapes
from gemfleet.train.checkpoint.state import CONFIG_FILE
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError

from .starting_adapter import adapter_origin, with_kept_adapter

NOT_WORK = {"name", "cluster", "api"}  # sections that change where a run is carried out, but not its result


def nothing_left(registry: RunRegistry, run_id: str, config: LaunchConfig) -> str | None:
    """A sentence if the run has succeeded and `config` asks for nothing more of it. None if work is left."""
    folder = gemfleet_home() / "runs" / run_id
    run = registry.get_run(run_id)
    if run.state is not RunState.SUCCEEDED or not (folder / "output").is_dir():
        return None
    try:
        asked_before = with_kept_adapter(load_config(folder / RESOLVED_FILE), folder)
    except UserError:  # another version of gemfleet wrote it
        return None
    if _work(asked_before) != _work(with_kept_adapter(config, folder)):
        return None
    step = registry.latest_metrics(run_id, "step")
    steps = f" after {step['step']} of {step['total_steps']} steps" if step else ""
    early = ", as early stopping said" if early_end_of(registry, run) else ""
    return (
        f"{run_id} has succeeded{steps}{early}, so nothing is left to do; its result is in {folder / 'output'}. "
        "To train on, ask for more: --set train.epochs=N"
    )


def _work(config: LaunchConfig) -> dict[str, Any]:
    return config.model_dump(exclude=NOT_WORK)


def check_resume(train: TrainConfig, run_folder: Path, accept_changes: bool) -> list[str]:
    """The accepted changes since the newest checkpoint, empty without one. Raises UserError for any other change.

    The data, and a base that is in no folder here, are compared later, by the ranks.
    """
    with shelf_of(run_folder) as shelf:
        newest, _ = shelf.newest_verified()
        if newest is None:
            return []
        made = json.loads((shelf.at_hand(newest.step) / CONFIG_FILE).read_text())
    name = f"checkpoint-{newest.step}"
    refuse_other_shapes(name, made, train)
    base = Path(train.model).expanduser()
    adapter = adapter_origin(train)
    lineage = Lineage(base_digest(base) if base.is_dir() else None, None, accept_changes, adapter)
    return changes_since(name, made, train, lineage)
