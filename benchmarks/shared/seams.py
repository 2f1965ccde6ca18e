"""What the training loop asks of the world around it, filled for measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gemfleet.train.interfaces import Ints, PackedRows, Pixels, StepRows, WriteCheckpoint, no_pictures


class FixedSteps:
    """A BlockSource of one epoch of `count` steps. make: the rows of (step, rank); evaluation: None where none is."""

    def __init__(self, count: int, make: Callable[[int, int], StepRows], evaluation: PackedRows | None = None) -> None:
        self.steps_per_epoch, self._make, self.pictures = count, make, no_pictures()
        self.eval_sets, self._evaluation = () if evaluation is None else ("eval",), evaluation

    def step(self, epoch: int, step_in_epoch: int, rank: int) -> StepRows:
        return self._make(step_in_epoch, rank)

    def eval_rows(self, rank: int, name: str) -> PackedRows:
        assert self._evaluation is not None
        return self._evaluation

    def pixels(self, ids: Ints) -> Pixels:
        raise KeyError("no pictures")


class StepReporter:
    """A Reporter of a run that starts afresh and is not to stop.

    tell: gets each step's record; folder: checkpoints are written there; None: they are dropped
    """

    def __init__(
        self, tell: Callable[[dict[str, Any]], None] = lambda record: None, folder: Path | None = None
    ) -> None:
        self._tell, self._folder = tell, folder

    def progress(self, phase: str) -> None:
        """Nothing watches."""

    def log_step(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "step":
            self._tell(dict(record))

    def save_checkpoint(self, step: int, write: WriteCheckpoint | None, metrics: Mapping[str, float]) -> None:
        if write is not None and self._folder is not None:
            place = self._folder / f"checkpoint-{step}"
            place.mkdir(parents=True)
            write(place)

    def finish(self) -> None:
        """Everything is written as it is saved."""

    def latest_checkpoint(self, destination: Path) -> Path | None:
        return None

    def should_stop(self) -> bool:
        return False
