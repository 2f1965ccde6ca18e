"""What one trial of a number of rows showed, over all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Failure(StrEnum):
    """Why a trial has no measurement, the most telling first: when ranks differ, the first of these is the verdict."""

    MEMORY = "memory"  # a rank had not enough of it
    USER = "user"  # a rank found something the user has to put right
    DIED = "died"  # a process ended without a word
    SILENT = "silent"  # a process gave no sign of life within the bound
    ERROR = "error"  # a rank raised something else


@dataclass(frozen=True)
class RankMeasure:
    """One rank's figures. Memory in bytes; `usable` is the limit less the margin.

    seconds: what a pass full of text takes at the speed of the run's own passes
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
    """All ranks' verdict on `rows` rows in one pass. `ranks` is empty where `failure` says why there are none.

    evaluation: whether the pass was one that scores, without gradients
    """

    rows: int
    ranks: tuple[RankMeasure, ...] = ()
    failure: Failure | None = None
    message: str = ""
    evaluation: bool = False

    @property
    def fits(self) -> bool:
        """The worst rank decides."""
        return self.failure is None and all(rank.fits for rank in self.ranks)

    @property
    def seconds(self) -> float:
        """Seconds of a pass full of text: the slowest rank's, for the others wait for it."""
        return max(rank.seconds for rank in self.ranks)

    @property
    def tightest(self) -> RankMeasure:
        """The rank that used most of what it may."""
        return max(self.ranks, key=lambda rank: rank.peak_bytes / max(1, rank.usable_bytes))
