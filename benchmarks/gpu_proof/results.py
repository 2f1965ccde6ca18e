"""What came of each part, its record, and the summary of all."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from ..shared.record import Record, new_record, now, write_case
from .checks import Check
from .registry import PARTS

SUITE = "gpu-proof"
State = Literal["running", "ended", "timed out", "crashed", "not reached"]
GOOD = ("passed", "skipped", "not compared")
COLUMNS = ("part", "verdict", "checks", "nearest to its bound", "seconds")


@dataclass
class Result:
    """error: why the part ended early."""

    part: str
    state: State = "running"
    seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def verdict(self) -> str:
        """The part's: that of its worst check, or why it has none."""
        if self.state != "ended":
            return self.state
        verdicts = {check.verdict for check in self.checks}
        if self.error or "failed" in verdicts:
            return "failed"
        if verdicts == {"skipped"}:
            return "skipped"
        return "not compared" if "not compared" in verdicts else "passed"

    @property
    def good(self) -> bool:
        return self.verdict in GOOD

    def take(self, event: Mapping[str, Any]) -> None:
        """A check or figures that the part tells of."""
        if event["event"] == "check":
            self.checks.append(Check(**event["check"]))
        elif event["event"] == "figures":
            self.figures |= event["figures"]

    def row(self) -> list[str]:
        """Cells of `COLUMNS`."""
        worst = max(self.checks, key=lambda check: check.rank, default=None)
        judged = [check for check in self.checks if check.verdict != "skipped"]
        skipped = len(self.checks) - len(judged)
        count = f"{len(judged)}" + (f", {skipped} skipped" if skipped else "")
        first = self.error.splitlines()[0] if self.error else str(worst or "")
        return [self.part, self.verdict, count, first[:200], f"{self.seconds:.1f}"]


@dataclass
class Book:
    """Writes the records of one proof. config: what decided it; archive: one file that holds all that is written."""

    folder: Path
    config: dict[str, Any]
    archive: Path | None = None

    @cached_property
    def _machine(self) -> Record:
        return new_record(SUITE, "", self.config)

    def keep(self, result: Result) -> None:
        """Write the part's record anew; while it runs, with what it has found so far."""
        question = {"question": PARTS[result.part].question}
        self._write(result.part, self.config | question, {"verdict": result.verdict, **asdict(result)})

    def summarise(self, results: Sequence[Result]) -> None:
        """`gpu-proof-summary.json` and `.md`."""
        parts = {result.part: {"verdict": result.verdict, "seconds": result.seconds} for result in results}
        path = self._write("summary", self.config, {"passed": all(result.good for result in results), "parts": parts})
        path.with_suffix(".md").write_text(self.markdown(results), encoding="utf-8")
        self._pack()

    def markdown(self, results: Sequence[Result]) -> str:
        """The table, the figures of speed, and everything that failed."""
        record = self._machine
        device = ", ".join(record.hardware.get("gpus") or [record.hardware["cpu"]])
        failed = [f"- {r.part}, {check}" for r in results for check in r.checks if check.verdict == "failed"]
        lines = [
            f"`{record.command}` on {device}, torch {record.versions['torch']}, {now()[:10]}.",
            "",
            "| " + " | ".join(COLUMNS) + " |",
            "|---|---|---|---|---:|",
            *("| " + " | ".join(cell.replace("|", "\\|") for cell in result.row()) + " |" for result in results),
            *(["", "Failed:", "", *failed] if failed else []),
            *speed_lines(results),
        ]
        return "\n".join([*lines, ""])

    def _write(self, case: str, config: dict[str, Any], found: dict[str, Any]) -> Path:
        changes = {"case": case, "config": config, "results": found, "finished_at": now()}
        path = write_case(self._machine.model_copy(update=changes), self.folder)
        self._pack()
        return path

    def _pack(self) -> None:
        if self.archive is not None:
            self.archive.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(self.archive, "w:gz") as file:
                file.add(self.folder, arcname=self.folder.name)


def table(results: Sequence[Result]) -> Table:
    """The summary on a terminal."""
    shown = Table(title="The CUDA path on this device")
    for column in COLUMNS:
        shown.add_column(column, overflow="fold", justify="right" if column == "seconds" else "left")
    for result in results:
        shown.add_row(*result.row())
    return shown


def speed_lines(results: Sequence[Result]) -> list[str]:
    """One line for each case of speed."""
    columns = ("case", "tokens/s", "raw", "supervised", "MFU", "s/step", "GiB")
    rows = [_speed_row(case, found) for result in results for case, found in _speeds(result)]
    head = ["", "| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return [*head, *("| " + " | ".join(row) + " |" for row in rows)] if rows else []


def _speeds(result: Result) -> list[tuple[str, dict[str, Any]]]:
    if not result.part.startswith("speed-"):
        return []
    return [(f"{result.part.removeprefix('speed-')}, {case}", found) for case, found in result.figures.items()]


def _speed_row(name: str, found: Mapping[str, Any]) -> list[str]:
    rates = ("tokens_per_second", "raw_tokens_per_second", "supervised_tokens_per_second")
    mfu, reserved = found["mfu"], found.get("reserved_bytes")
    return [
        name,
        *(f"{found[rate]:,.0f}" for rate in rates),
        "-" if mfu is None else f"{mfu:.1%}",
        f"{found['step_seconds']:.3f}",
        "-" if reserved is None else f"{reserved / 2**30:.1f}",
    ]
