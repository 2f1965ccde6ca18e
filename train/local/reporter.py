"""A `Reporter` for ranks on one machine: checkpoints by rename, records as lines and TensorBoard curves."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from ..config.home import open_as_umask_says
from ..errors import UserError
from ..interfaces import WriteCheckpoint
from ..step.record import points, spoken_loss


class LocalReporter:
    """Writes `<folder>/checkpoints/checkpoint-<step>`, `<folder>/metrics.jsonl` and `<folder>/tensorboard`.

    A checkpoint's folder appears by one rename, so it is whole or absent. Raises UserError if the folder already holds
    checkpoints and `resume` is false.
    """

    def __init__(self, folder: Path, rank: int, resume: bool) -> None:
        self.folder, self._rank, self._resume = folder, rank, resume
        if not resume and self._steps():
            raise UserError(
                f"{folder} holds checkpoints already; add --resume to go on from them, or give another --out"
            )
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> LocalReporter:
        if self._rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            self._metrics = (self.folder / "metrics.jsonl").open("a")
            self._board = SummaryWriter(str(self.folder / "tensorboard"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rank == 0:
            self._metrics.close()
            self._board.close()

    def checkpoint_folder(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"checkpoint-{step}"

    def progress(self, phase: str) -> None:
        """Does nothing: no watchdog watches a process that a person started."""

    def log_step(self, record: Mapping[str, Any]) -> None:
        self._metrics.write(json.dumps(dict(record)) + "\n")
        self._metrics.flush()
        for tag, value in points(record):
            self._board.add_scalar(tag, value, record["step"])
        print(line_of(record), flush=True)

    def tell(self, kind: str, sentence: str, facts: Mapping[str, Any]) -> None:
        print(sentence, flush=True)

    def save_checkpoint(self, step: int, write: WriteCheckpoint | None, metrics: Mapping[str, float]) -> None:
        if write is not None:
            target = self.checkpoint_folder(step)
            folder = Path(tempfile.mkdtemp(prefix=".checkpoint-", dir=target.parent))
            write(folder)
            if target.exists():
                shutil.rmtree(target)
            open_as_umask_says(folder)
            folder.rename(target)
        if dist.is_initialized():
            dist.barrier()

    def finish(self) -> None:
        """Does nothing: each record is written when it is logged."""

    def latest_checkpoint(self, destination: Path) -> Path | None:
        steps = self._steps() if self._resume else []
        return self.checkpoint_folder(max(steps)) if steps else None

    def should_stop(self) -> bool:
        return False

    def _steps(self) -> list[int]:
        names = [p.name.removeprefix("checkpoint-") for p in (self.folder / "checkpoints").glob("checkpoint-*")]
        return [int(name) for name in names if name.isdigit()]


def line_of(record: Mapping[str, Any]) -> str:
    """A line for a person: `step 12/40  epoch 0.30  loss 2.3105  lr 1.9e-04  812 tokens/s  1:02 left`."""
    position = f"step {record['step']}/{record['total_steps']}  epoch {record['epoch']:.2f}"
    if record["kind"] == "eval":
        return f"{position}  evaluation loss {spoken_loss(record)}"
    minutes, seconds = divmod(round(record["seconds_left"]), 60)
    return (
        f"{position}  loss {record['loss']:.4f}  lr {record['learning_rate']:.1e}  "
        f"{record['tokens_per_second']:.0f} tokens/s  {minutes}:{seconds:02d} left"
    )
