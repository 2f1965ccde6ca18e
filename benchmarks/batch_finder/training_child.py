"""`python -m ....training_child TASK`: the training loop as a run has it, on full rows. Prints its peak as JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemfleet.train.batch_finder.probes.probe import worst_rows
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.device.abilities import prepare_process
from gemfleet.train.device.memory import peak_resident_bytes
from gemfleet.train.interfaces import PackedRows, StepRows, WriteCheckpoint
from gemfleet.train.worker import run_training

from .training import PASSES, STEPS


class FullRows:
    """A `BlockSource` whose every pass is full and wholly supervised."""

    steps_per_epoch = STEPS
    has_eval = True

    def __init__(self, rows: int, max_length: int, vocabulary: int) -> None:
        self._rows = worst_rows(PASSES * rows, max_length, vocabulary)

    def step(self, epoch: int, step_in_epoch: int, rank: int) -> StepRows:
        rows = self._rows
        return StepRows(rows, rows.row_count, len(rows.tokens), rows.supervised_tokens)

    def eval_rows(self, rank: int) -> PackedRows:
        return self._rows


class Folder:
    """A `Reporter` that writes each checkpoint below a folder and forgets the figures."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def progress(self, phase: str) -> None:
        """Nothing watches."""

    def log_step(self, record: Mapping[str, Any]) -> None:
        """Only the peak is asked for."""

    def save_checkpoint(self, step: int, write: WriteCheckpoint | None, metrics: Mapping[str, float]) -> None:
        assert write is not None
        folder = self._folder / f"checkpoint-{step}"
        folder.mkdir()
        write(folder)

    def finish(self) -> None:
        """Everything is written."""

    def latest_checkpoint(self, destination: Path) -> Path | None:
        return None

    def should_stop(self) -> bool:
        return False


def main() -> None:
    task: dict[str, Any] = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prepare_process(1)
    config = TrainConfig.model_validate_json(json.dumps(task["config"]))
    folder = Path(task["model_folder"])
    text = json.loads((folder / "config.json").read_text())
    vocabulary = int(text.get("text_config", text)["vocab_size"])
    source = FullRows(config.batch.rows_per_pass, config.data.max_length, vocabulary)
    with tempfile.TemporaryDirectory(prefix="batch-finder-") as work:
        (Path(work) / "checkpoints").mkdir()
        result = run_training(config, folder, source, Folder(Path(work) / "checkpoints"), 0, 0, Path(work))
    answers.write(json.dumps({"peak_bytes": peak_resident_bytes(), "steps": result.steps}) + "\n")
    answers.close()


if __name__ == "__main__":
    main()
