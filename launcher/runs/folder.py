"""What the launcher keeps in a run's folder beside checkpoints and logs. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from gemfleet.cluster.errors import RunConflict
from gemfleet.cluster.registry.run_database import RUN_PARTS

RESOLVED_FILE = "config.resolved.yaml"
LAUNCHED_FROM_FILE = "working_directory"  # relative paths of the configuration begin there


def refuse_leftovers(run_folder: Path) -> None:
    """RunConflict when a new run would find files of an older one in its folder, and take them for its own."""
    if any((run_folder / part).exists() for part in RUN_PARTS):
        raise RunConflict(
            f"{run_folder} holds files of an older run of this id; choose another id, "
            "or let `gemfleet repair` bring that run back"
        )


def launch_folder(run_folder: Path) -> Path:
    """Where the run was launched, if that is still there; else where this process is."""
    try:
        folder = Path((run_folder / LAUNCHED_FROM_FILE).read_text().strip())
    except FileNotFoundError:
        return Path.cwd()
    return folder if folder.is_dir() else Path.cwd()
