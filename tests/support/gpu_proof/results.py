"""What came of each part, the record of all, and its summary for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from gemfleet.benchmarks.shared.record import Record, new_record, now, write_case
from rich.table import Table
from support.gpu_proof.findings import Check
from support.gpu_proof.parts import PARTS

SUITE, CASE = "gpu-proof", "all"
State = Literal["running", "ended", "timed out", "crashed", "not reached"]
GOOD = ("passed", "skipped", "not compared")
COLUMNS = ("part", "verdict", "checks", "nearest to its bound", "seconds")
SPEED = ("case", "tokens/s", "raw", "supervised", "MFU", "s/step", "GiB")


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
    """The record of one proof, written anew with each finding: an interruption loses nothing.

    config: what decided the proof, with the names of its `parts`; command: by which it can be repeated
    """

    folder: Path
    config: dict[str, Any]
    command: str
    results: dict[str, Result] = field(default_factory=dict)

    @cached_property
    def _machine(self) -> Record:
        return new_record(SUITE, CASE, self.config).model_copy(update={"command": self.command})

    def keep(self, result: Result) -> Path:
        """Write the record with what this part has found so far; parts that are not begun are not reached yet."""
        self.results[result.part] = result
        every = [self.results.get(part, Result(part, "not reached")) for part in self.config["parts"]]
        found = {r.part: {"question": PARTS[r.part].question, "verdict": r.verdict, **asdict(r)} for r in every}
        changes = {"results": {"passed": all(r.good for r in every), "parts": found}, "finished_at": now()}
        return write_case(self._machine.model_copy(update=changes), self.folder)

    def markdown(self, results: Sequence[Result]) -> str:
        """The table, everything that failed, and the figures of speed."""
        record = self._machine
        device = ", ".join(record.hardware.get("gpus") or [record.hardware["cpu"]])
        failed = [f"- {r.part}, {check}" for r in results for check in r.checks if check.verdict == "failed"]
        speeds = [row for result in results for row in _speed_rows(result)]
        lines = [f"`{record.command}` on {device}, torch {record.versions['torch']}, {now()[:10]}.", ""]
        lines += _lines(COLUMNS, [result.row() for result in results])
        lines += ["Failed:", "", *failed, ""] if failed else []
        return "\n".join([*lines, *(_lines(SPEED, speeds) if speeds else [])])


def table(results: Sequence[Result]) -> Table:
    """The summary on a terminal."""
    shown = Table(title="The CUDA path on this device")
    for column in COLUMNS:
        shown.add_column(column, overflow="fold", justify="right" if column == "seconds" else "left")
    for result in results:
        shown.add_row(*result.row())
    return shown


def _speed_rows(result: Result) -> Iterator[list[str]]:
    """Cells of `SPEED`."""
    for case, found in result.figures.items() if result.part.startswith("speed-") else ():
        rates = [found["tokens_per_second"]["median"], *(found[f"{n}_tokens_per_second"] for n in SPEED[2:4])]
        yield [
            f"{result.part.removeprefix('speed-')}, {case}",
            *(f"{rate:,.0f}" for rate in rates),
            f"{found['mfu']:.1%} ({found['mfu_basis']})",
            f"{found['step_seconds']['median']:.3f}",
            f"{found['peak_memory_bytes'] / 2**30:.1f}",
        ]


def _lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return [*head, *("| " + " | ".join(row) + " |" for row in cells), ""]
