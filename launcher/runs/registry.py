"""Opens the registry of a home. Imports nothing heavy."""

from __future__ import annotations

import sys
from pathlib import Path

from gemfleet.cluster.registry.run_database import is_lost
from gemfleet.cluster.registry.run_registry import Run, RunRegistry
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


def _tell(home: Path, run: Run) -> None:
    from gemfleet.launcher.notices.start import tell  # heavier than the registry

    tell(home, run, str(run.state))
