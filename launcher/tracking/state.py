"""What a run's folder says of its trackers: which run each has, how far it is, and what is wrong with it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

FOLDER = "trackers"
# Of the published folder. The rest of it is large, and is in the run's folder.
RESULT_FILES = ("README.md", "adapter_config.json", "adapter_model.safetensors", "trainer_state.json", "metrics.json")


@dataclass(frozen=True)
class TrackerState:
    """One tracker of a run.

    place:   see `place_of`; with `type` it tells trackers apart
    id:      of the tracker's run; None before the tracker answered
    link:    the page of that run; None where it has none
    sent:    the highest step that the tracker has, by the kind of record
    problem: why the tracker takes nothing now; empty while it does
    done:    whether the tracker has all, the result and the end of the run too
    """

    type: Literal["mlflow", "wandb"]
    place: str
    id: str | None = None
    link: str | None = None
    sent: dict[str, int] = field(default_factory=dict)
    problem: str = ""
    done: bool = False

    @property
    def name(self) -> str:
        return f"{self.type} ({self.place})"

    def path(self, run_folder: Path) -> Path:
        """The file of this state in a run's folder."""
        digest = hashlib.sha256(self.place.encode()).hexdigest()[:8]
        return run_folder / FOLDER / f"{self.type}-{digest}.json"

    def write(self, run_folder: Path) -> None:
        """Keep it. A full disk costs at most that some records are sent again."""
        path = self.path(run_folder)
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(asdict(self)))
            temporary.replace(path)

    @contextmanager
    def held(self, run_folder: Path) -> Iterator[Callable[[], bool]]:
        """Give a function that tries to be the only one who follows this run for this tracker."""
        path = self.path(run_folder).with_suffix(".lock")
        path.parent.mkdir(exist_ok=True)
        with path.open("w") as file:
            yield lambda: _locks(file.fileno())

    def read(self, run_folder: Path) -> TrackerState:
        """As the folder has it; itself where the folder has none."""
        return _read(self.path(run_folder)) or self


def tracker_states(run_folder: Path) -> Iterator[TrackerState]:
    """The trackers of a run, also those of its earlier launches."""
    for path in sorted((run_folder / FOLDER).glob("*.json")):
        if state := _read(path):
            yield state


def result_files(run_folder: Path) -> list[Path]:
    """The files of a run's result that trackers get."""
    return [path for name in RESULT_FILES if (path := run_folder / "output" / name).is_file()]


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the filesystem has no locks
        return True
    return True


def _read(path: Path) -> TrackerState | None:
    try:
        return TrackerState(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
