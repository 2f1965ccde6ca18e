"""What the launcher keeps in a run's folder beside checkpoints and logs. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

RESOLVED_FILE = "config.resolved.yaml"
LAUNCHED_FROM_FILE = "working_directory"  # relative paths of the configuration begin there


def launch_folder(run_folder: Path) -> Path:
    """Where the run was launched, if that is still there; else where this process is."""
    try:
        folder = Path((run_folder / LAUNCHED_FROM_FILE).read_text().strip())
    except FileNotFoundError:
        return Path.cwd()
    return folder if folder.is_dir() else Path.cwd()
