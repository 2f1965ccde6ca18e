"""Files that the launcher keeps in a run's folder, beside checkpoints and logs. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from gemfleet.cluster.errors import RunConflict
from gemfleet.cluster.registry.run_database import RUN_PARTS

RESOLVED_FILE = "config.resolved.yaml"
SETTLED_FILE = "settled.yaml"  # the configuration with the plan's choices in place of `auto`
DATA_FILE = "data.json"  # what the run trains on, as `launcher/data_view/view.py` describes it
ANSWERED_PICTURES_FILE = "predictions.pictures.json"  # small copies of the first answers' pictures, for people
LAUNCHED_FROM_FILE = "working_directory"  # its content: where relative paths of the configuration begin


def refuse_leftovers(run_folder: Path) -> None:
    """Raise RunConflict if the folder of a new run already holds files of a run, which it would take for its own."""
    if any((run_folder / part).exists() for part in RUN_PARTS):
        raise RunConflict(
            f"{run_folder} holds files of an older run of this id; choose another id, "
            "or let `gemfleet repair` bring that run back"
        )


def launch_folder(run_folder: Path) -> Path:
    """The folder from which the run was launched, or this process's folder if that one is gone."""
    try:
        folder = Path((run_folder / LAUNCHED_FROM_FILE).read_text().strip())
    except FileNotFoundError:
        return Path.cwd()
    return folder if folder.is_dir() else Path.cwd()
