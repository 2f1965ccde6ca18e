"""The seams of a worker process: what the loop asks of the world around it.

`launcher` fills these with Ray; `python -m train` fills them with the local process. The loop knows neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# Writes a whole checkpoint into an existing empty folder, from state that was copied off the device already.
WriteCheckpoint = Callable[[Path], None]


@dataclass(frozen=True)
class PackedRows:
    """Some packed rows of one rank: documents laid end to end, no padding anywhere.

    tokens:          int32 [T], the token ids of all documents of all rows, in order
    supervised:      bool  [T], True where the token is a target the model is scored on (never a document's first token)
    document_lengths int32 [D], tokens in each document; sums to T
    row_documents    int32 [R], documents in each row; sums to D. A row never exceeds `max_length` tokens.
    """

    tokens: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    document_lengths: NDArray[np.int32]
    row_documents: NDArray[np.int32]

    @property
    def row_count(self) -> int:
        return len(self.row_documents)

    @property
    def supervised_tokens(self) -> int:
        return int(self.supervised.sum())

    def padded_to(self, tokens: int) -> PackedRows:
        """With a document of zeros at the end that nothing is supervised in, so that there are at least `tokens`."""
        missing = tokens - len(self.tokens)
        if missing <= 0:
            return self
        return PackedRows(
            np.concatenate([self.tokens, np.zeros(missing, np.int32)]),
            np.concatenate([self.supervised, np.zeros(missing, np.bool_)]),
            np.concatenate([self.document_lengths, np.array([missing], np.int32)]),
            np.concatenate([self.row_documents, np.array([1], np.int32)]),
        )

    def micro_batches(self, rows_per_pass: int) -> Iterator[PackedRows]:
        """Split into passes of at most `rows_per_pass` rows; the last one may be smaller."""
        document_ends = np.concatenate([[0], np.cumsum(self.row_documents)])
        token_ends = np.concatenate([[0], np.cumsum(self.document_lengths)])
        for first in range(0, self.row_count, rows_per_pass):
            last = min(first + rows_per_pass, self.row_count)
            d0, d1 = document_ends[first], document_ends[last]
            t0, t1 = token_ends[d0], token_ends[d1]
            yield PackedRows(
                self.tokens[t0:t1],
                self.supervised[t0:t1],
                self.document_lengths[d0:d1],
                self.row_documents[first:last],
            )


# What a rank without rows of its own runs where all ranks must run equally many passes: nothing in it is scored.
EMPTY_PASS = PackedRows(
    tokens=np.zeros(2, np.int32),
    supervised=np.zeros(2, np.bool_),
    document_lengths=np.array([2], np.int32),
    row_documents=np.array([1], np.int32),
)


@dataclass(frozen=True)
class StepRows:
    """One optimizer step as one rank sees it: its own rows, and the whole step's counts (equal on every rank)."""

    rows: PackedRows
    step_examples: int
    step_tokens: int
    step_supervised_tokens: int


class BlockSource(Protocol):
    """Packed examples of a run, already divided among ranks. A pure function of (data, seed, epoch, world size)."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def has_eval(self) -> bool: ...

    def step(self, epoch: int, step_in_epoch: int, rank: int) -> StepRows:
        """The rows `rank` trains on in that step. `epoch` counts from 0."""
        ...

    def eval_rows(self, rank: int) -> PackedRows:
        """The share of the evaluation set that `rank` scores; may be empty."""
        ...


class Reporter(Protocol):
    """Where a rank tells what it did, and asks whether to go on. No call may raise into training or wait for the
    network, but `save_checkpoint`, which may wait for the copy to be accepted."""

    def progress(self, phase: str) -> None:
        """The rank gets on: `phase` (`start`, `step`, `evaluate`, `save`, `finish`) begins. A watchdog counts from the
        last call."""
        ...

    def log_step(self, record: Mapping[str, Any]) -> None:
        """One optimizer step (`kind: "step"`) or evaluation (`kind: "eval"`), rank 0 only. JSON-serialisable; flat but
        for what each rank has of its own, which is a list with an entry for each rank."""
        ...

    def save_checkpoint(self, step: int, write: WriteCheckpoint | None, metrics: Mapping[str, float]) -> None:
        """Every rank calls it at the same step. `write` writes this rank's files (None: it has none), perhaps later and
        in another thread. Returns without waiting for the commit, unless the one before is still on its way."""
        ...

    def finish(self) -> None:
        """Collective: wait until everything logged and saved has arrived."""
        ...

    def latest_checkpoint(self, destination: Path) -> Path | None:
        """Fetch the newest verified checkpoint into `destination` and return its folder; None when there is none."""
        ...

    def should_stop(self) -> bool:
        """Whether this rank was asked to stop. The loop agrees on it over all ranks at each step."""
        ...
