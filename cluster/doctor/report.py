"""What a check says: one finding for each thing looked at, with its figure and, where it is not right, the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is. Only `FAIL` keeps a run from starting."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """`check`: its name; `where`: a node's address, `cluster`, or `A > B` for a way; `figure`: what was measured."""

    check: str
    where: str
    level: Level
    figure: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert (self.level is Level.PASS) == (not self.remedy), "a finding that is not right needs a remedy"

    def sentence(self) -> str:
        return f"{self.check} ({self.where}): {self.figure}" + (f"; {self.remedy}" if self.remedy else "")


def failures(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level is Level.FAIL]


def ranked(check: str, where: str, figure: str, bounds: Sequence[tuple[bool, Level, str]]) -> Finding:
    """The finding of the first bound that holds: (does it hold, how bad, remedy); else a pass."""
    for holds, level, remedy in bounds:
        if holds:
            return Finding(check, where, level, figure, remedy)
    return Finding(check, where, Level.PASS, figure)
