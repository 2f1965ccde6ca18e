"""The result of one trial of a number of rows, over all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Failure(StrEnum):
    """Why a trial has no measurement, the most telling reason first: if ranks differ, the first one is the verdict."""

    MEMORY = "memory"  # a rank ran out of it
    USER = "user"  # a rank found a mistake of the user's
    DIED = "died"  # a process ended without an answer
    SILENT = "silent"  # a process gave no sign of life in time
    ERROR = "error"  # a rank raised something else
    ABSENT = "absent"  # no rank computes on the kind of GPUs that is asked about


@dataclass(frozen=True)
class RankMeasure:
    """One rank's figures. Memory in bytes; `usable_bytes` is the limit less the margin.

    seconds: for a pass full of text, at the speed of the run's own passes
    """

    rank: int
    node: str
    peak_bytes: int
    usable_bytes: int
    seconds: float

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.usable_bytes


@dataclass(frozen=True)
class Trial:
    """The verdict of all ranks on `rows` rows in a pass. `ranks` is empty if there is a `failure`.

    evaluation: whether the pass only scored, without gradients
    """

    rows: int
    ranks: tuple[RankMeasure, ...] = ()
    failure: Failure | None = None
    message: str = ""
    evaluation: bool = False

    @property
    def fits(self) -> bool:
        """Whether the pass fits on every rank."""
        return self.failure is None and all(rank.fits for rank in self.ranks)

    @property
    def seconds(self) -> float:
        """The slowest rank's seconds for a pass full of text: the others wait for it."""
        return max(rank.seconds for rank in self.ranks)

    @property
    def tightest(self) -> RankMeasure:
        """The rank that used the largest share of what it may use."""
        return max(self.ranks, key=lambda rank: rank.peak_bytes / max(1, rank.usable_bytes))
