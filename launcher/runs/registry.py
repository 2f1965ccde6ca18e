"""Opens the registry of a home. Imports nothing heavy."""

from __future__ import annotations

import sys
from pathlib import Path

from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.run_database import is_lost
from gemfleet.cluster.registry.run_queries import RunQueries
from gemfleet.cluster.registry.run_registry import Run, RunRegistry, RunState
from gemfleet.train.step.record import OVER_RUN


def registry_of(home: Path) -> RunRegistry:
    """The registry of this home, which tells webhooks of the runs that it ends.

    Rebuilds one that is lost, and says so on the error output.
    """
    path = home / "gemfleet.db"
    if is_lost(path):
        from .repair import repair  # heavier than the registry, and rarely needed

        count = len(repair(home).rebuilt)
        print(f"the registry was lost; {count} runs are back from their folders, without metrics", file=sys.stderr)
    return RunRegistry(path, OVER_RUN, lambda run: _tell(home, run))


def early_end_of(registry: RunQueries, run: Run) -> str | None:
    """Why a run that succeeded ended before its last step, in a sentence; None for any other."""
    told = registry.last_event(run.id, EventKind.RESULT) if run.state is RunState.SUCCEEDED else None
    return told["data"].get("stopped_early") if told else None


def published_of(registry: RunQueries, run_id: str) -> str | None:
    """Which checkpoint a run's result is of, and why, see `Chosen`; None where nothing is published."""
    told = registry.last_event(run_id, EventKind.PUBLISHED)
    return told["data"]["reason"] if told else None


def _tell(home: Path, run: Run) -> None:
    from gemfleet.launcher.notices.start import tell  # heavier than the registry

    tell(home, run, str(run.state))
