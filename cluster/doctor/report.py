"""Findings: what a check looked at, its figure, and the remedy if it is not right."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ..durable import write_durably

KEPT_FILE = "doctor.json"  # below the home: what the last whole examination found


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


def keep_findings(home: Path, findings: Iterable[Finding]) -> None:
    """Keeps the findings of a whole examination in place of those of the one before, for the board.

    On a disk that takes nothing, which may be what was found, it keeps nothing.
    """
    content = {"examined_at": time.time(), "findings": [asdict(finding) for finding in findings]}
    with suppress(OSError):
        write_durably(home / KEPT_FILE, json.dumps(content).encode())


def kept_findings(home: Path) -> tuple[float, list[dict[str, Any]]] | None:
    """When the last whole examination ended, and its findings. None where there was none, or its file is damaged."""
    try:
        content = json.loads((home / KEPT_FILE).read_bytes())
        findings = [asdict(Finding(**{**entry, "level": Level(entry["level"])})) for entry in content["findings"]]
        return float(content["examined_at"]), findings
    except (OSError, ValueError, TypeError, KeyError, AssertionError):
        return None
