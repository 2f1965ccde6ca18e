"""The interfaces of a worker process: what the loop asks of the world around it.

`launcher` implements them with Ray, `train/local` within this process. The loop knows neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Pixels = NDArray[np.uint8]
# Writes a whole checkpoint into an existing empty folder, from state that is already copied off the device.
WriteCheckpoint = Callable[[Path], None]


def no_pictures() -> Ints:
    """Of rows without pictures: an empty array."""
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class PackedRows:
    """Packed rows of one rank: documents end to end, without padding.

    tokens:           int32 [T], the token ids of all documents of all rows, in order
    supervised:       bool  [T], True if the loss scores the token (never a document's first token)
    document_lengths: int32 [D], tokens in each document; sums to T
    row_documents:    int32 [R], documents in each row; sums to D. A row has at most `max_length` tokens.
    pictures:         int64 [P], ids of the pictures whose soft tokens are in `tokens`, in order; one may appear twice
    picture_starts:   int64 [P], the token at which each of them begins. It has as many as the model wants (256), and
                      all are in one document.
    """

    tokens: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    document_lengths: NDArray[np.int32]
    row_documents: NDArray[np.int32]
    pictures: Ints = field(default_factory=no_pictures)
    picture_starts: Ints = field(default_factory=no_pictures)

    @property
    def row_count(self) -> int:
        return len(self.row_documents)

    @property
    def supervised_tokens(self) -> int:
        return int(self.supervised.sum())

    def padded_to(self, tokens: int) -> PackedRows:
        """The rows, filled up to `tokens` tokens by a last document of zeros, in which none is supervised."""
        missing = tokens - len(self.tokens)
        if missing <= 0:
            return self
        return PackedRows(
            np.concatenate([self.tokens, np.zeros(missing, np.int32)]),
            np.concatenate([self.supervised, np.zeros(missing, np.bool_)]),
            np.concatenate([self.document_lengths, np.array([missing], np.int32)]),
            np.concatenate([self.row_documents, np.array([1], np.int32)]),
            self.pictures,
            self.picture_starts,
        )

    def micro_batches(self, rows_per_pass: int) -> Iterator[PackedRows]:
        """Passes of at most `rows_per_pass` rows. The last one may be smaller."""
        document_ends = np.concatenate([[0], np.cumsum(self.row_documents)])
        token_ends = np.concatenate([[0], np.cumsum(self.document_lengths)])
        for first in range(0, self.row_count, rows_per_pass):
            last = min(first + rows_per_pass, self.row_count)
            d0, d1 = document_ends[first], document_ends[last]
            t0, t1 = token_ends[d0], token_ends[d1]
            p0, p1 = np.searchsorted(self.picture_starts, [t0, t1])
            yield PackedRows(
                self.tokens[t0:t1],
                self.supervised[t0:t1],
                self.document_lengths[d0:d1],
                self.row_documents[first:last],
                self.pictures[p0:p1],
                self.picture_starts[p0:p1] - t0,
            )


# A rank that lacks rows runs this pass if all ranks must run equally many. Nothing in it is scored.
EMPTY_PASS = PackedRows(
    tokens=np.zeros(2, np.int32),
    supervised=np.zeros(2, np.bool_),
    document_lengths=np.array([2], np.int32),
    row_documents=np.array([1], np.int32),
)


@dataclass(frozen=True)
class StepRows:
    """One optimizer step for one rank: its own rows, and the counts of the whole step, equal on every rank."""

    rows: PackedRows
    step_examples: int
    step_tokens: int
    step_supervised_tokens: int


@dataclass(frozen=True)
class Shares:
    """Unequal shares of ranks in a step. weights: of each rank, in proportion to its speed

    equal_passes: whether all ranks must run equally many passes, so that a slower one needs shorter rows
    """

    weights: tuple[int, ...]
    equal_passes: bool


class BlockSource(Protocol):
    """The packed examples of a run, divided among ranks. A pure function of (data, seed, epoch, world size, shares)."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def eval_sets(self) -> tuple[str, ...]:
        """The names of the evaluation sets, which may be none."""
        ...

    @property
    def pictures(self) -> Ints:
        """The ids of all pictures of the run, each once, ascending. The same on every rank; empty without pictures."""
        ...

    def step(self, epoch: int, step_in_epoch: int, rank: int, shares: Shares | None = None) -> StepRows:
        """The rows that `rank` trains on in that step. Epochs and their steps count from 0. shares: None: equal ones"""
        ...

    def eval_rows(self, rank: int, name: str) -> PackedRows:
        """The share of an evaluation set that `rank` scores. It may be empty."""
        ...

    def pixels(self, ids: Ints) -> Pixels:
        """Pictures of the rows by their ids, uint8 [P, 3, H, W]: resized for the model, not yet normalised.

        An id stands for the content of a picture, so it is the same in every run. Raises KeyError for one of no row.
        """
        ...


class Reporter(Protocol):
    """A rank tells it what it did, and asks it whether to go on.

    No call may raise into training. Only `save_checkpoint` may wait for the network, until its copy is accepted.
    """

    def progress(self, phase: str) -> None:
        """`phase` (`start`, `step`, `evaluate`, `save`, `finish`) begins. A watchdog counts from the last call."""
        ...

    def log_step(self, record: Mapping[str, Any]) -> None:
        """Records an optimizer step (`kind: "step"`) or an evaluation (`kind: "eval"`). Only rank 0 calls it.

        The record is flat JSON. A figure that each rank has is a list with an entry for each rank; one that each
        evaluation set has is an object with an entry for each set.
        """
        ...

    def save_checkpoint(self, step: int, write: WriteCheckpoint | None, metrics: Mapping[str, float]) -> None:
        """Saves a checkpoint. All ranks call it at the same step. It waits only for the commit of the one before.

        write: writes this rank's files, perhaps later and in another thread; None: this rank has none
        """
        ...

    def finish(self) -> None:
        """Waits until all that was logged and saved has arrived. Collective."""
        ...

    def latest_checkpoint(self, destination: Path) -> Path | None:
        """Fetches the newest verified checkpoint into `destination`. Returns its folder; None if there is none."""
        ...

    def tell(self, kind: str, sentence: str, facts: Mapping[str, Any]) -> None:
        """Tells an event: its kind, a sentence for people, and the same for programs. Only rank 0 calls it."""
        ...

    def should_stop(self) -> bool:
        """Whether this rank was asked to stop. At each step, the loop asks all ranks."""
        ...


class FeatureKeeper(Protocol):
    """Keeps features for other runs. It may forget any, and never raises: what it lacks is made again."""

    @property
    def limit_bytes(self) -> int: ...

    def fetch(self, key: str, ids: Sequence[int]) -> dict[int, bytes]:
        """The features of those pictures that are there and whole, by id. key: from `vision/kept.py: tower_key`"""
        ...

    def put(self, key: str, made: Mapping[int, bytes]) -> None: ...
