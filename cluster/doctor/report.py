"""Findings: what a check looked at, its figure, and the remedy if it is not right."""

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
    """One finding.

    check:  the name of the check
    where:  a node's address, `cluster`, or `A > B` for a way
    figure: what was read or measured
    remedy: what to do; empty when, and only when, it passes
    """

    check: str
    where: str
    level: Level
    figure: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert (self.level is Level.PASS) == (not self.remedy), "a finding that is not right needs a remedy"

    def sentence(self) -> str:
        """The finding in one line."""
        return f"{self.check} ({self.where}): {self.figure}" + (f"; {self.remedy}" if self.remedy else "")


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that keep a run from starting."""
    return [finding for finding in findings if finding.level is Level.FAIL]


def ranked(check: str, where: str, figure: str, bounds: Sequence[tuple[bool, Level, str]]) -> Finding:
    """The finding of the first bound that holds, else a pass. A bound: (does it hold, how bad is that, remedy)."""
    for holds, level, remedy in bounds:
        if holds:
            return Finding(check, where, level, figure, remedy)
    return Finding(check, where, Level.PASS, figure)
