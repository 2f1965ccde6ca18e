"""What the fault tests keep about each fault, and how they judge a run that went on."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gemfleet.cluster.checkpoint_store.folder_shelf import FolderShelf

HEADER = ("fault", "final state", "resumed from", "steps lost", "recovery s")
ROWS: list[tuple[str, ...]] = []
SEED = int(os.environ.get("GEMFLEET_SEED") or random.randrange(10**6))  # of the random moments; printed in the table
EPOCHS = 30.0  # long enough for a fault to fall into it on a fast machine


@dataclass(frozen=True)
class Place:
    """Where the runs of these tests happen. `whole`: the output of an undisturbed run of `EPOCHS` epochs."""

    workplace: Path
    address: str
    whole: Path


def print_table(write: Callable[[str], None]) -> None:
    """At the end of a test session. GEMFLEET_FAULTS_TABLE names a file to write the table to, besides."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEADER, ("---",) * len(HEADER), *ROWS)]
    write("\n".join(lines))
    if path := os.environ.get("GEMFLEET_FAULTS_TABLE"):
        Path(path).write_text("\n".join(lines) + "\n")


def tell(
    fault: str, state: str, resumed: str = "-", steps_lost: int | None = None, seconds: float | None = None
) -> None:
    """One row of the table."""
    lost = "-" if steps_lost is None else str(steps_lost)
    ROWS.append((fault, state, resumed, lost, "-" if seconds is None else f"{seconds:.1f}"))


def verifies(home: Path, run_id: str) -> None:
    """Every manifest of the run is that of a whole checkpoint, and nothing unfinished is left."""
    shelf = FolderShelf(home / "runs" / run_id / "checkpoints")
    verdicts = shelf.verify_all()
    assert verdicts
    assert [name for name, problem in verdicts if problem] == []
    assert [path.name for path in shelf.root.glob(".incoming-*")] == []
