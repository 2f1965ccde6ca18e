"""Whether there is anything to go on with: a run that succeeded has trained all its steps."""

from __future__ import annotations

from typing import Any

from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.errors import UserError

from ..config.load import load_config
from ..config.schema import LaunchConfig
from ..runs.folder import RESOLVED_FILE

ELSEWHERE = {"name", "cluster", "api"}  # where and how a run is carried out says nothing of what is left of it


def nothing_left(registry: RunRegistry, run_id: str, config: LaunchConfig) -> str | None:
    """A sentence where the run succeeded and `config` asks for nothing more of it; None where there is work to do."""
    folder = gemfleet_home() / "runs" / run_id
    if registry.get_run(run_id).state is not RunState.SUCCEEDED or not (folder / "output").is_dir():
        return None
    try:
        asked_before = load_config(folder / RESOLVED_FILE)
    except UserError:  # kept by another version of gemfleet
        return None
    if _work(asked_before) != _work(config):
        return None
    step = registry.latest_metrics(run_id, "step")
    steps = f" after {step['step']} of {step['total_steps']} steps" if step else ""
    return (
        f"{run_id} has succeeded{steps}, so nothing is left to do; its result is in {folder / 'output'}. "
        "To train on, ask for more: --set train.epochs=N"
    )


def _work(config: LaunchConfig) -> dict[str, Any]:
    return config.model_dump(exclude=ELSEWHERE)
