"""Measure several cases several times over, in turn, and keep each result as soon as it is there.

Cases alternate and their order turns around in every other round, so that a machine that slows down or warms up hits
them alike. What has a record of the same configuration, source, machine and versions is not measured again: a suite
that was interrupted goes on where it was, and `--repeat 5` after `--repeat 3` adds two rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .record import Record, Run, case_file, new_record, now, read_record, write_case

OUT = Path("bench-results")
REPORT_WIDTH = 140  # columns of a table in a log file; a terminal has its own width
Tick = Callable[[str], None]
Measure = Callable[["Case", int, Tick], Run]
Summarise = Callable[[Record], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One thing to measure. `config` decides it and is compared when a suite is resumed; `ticks`: steps of one run."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    ticks: int = 1


@dataclass(frozen=True)
class Suite:
    """How a suite's cases are measured (may raise; a failed case is `Run.error`) and what is made of their runs."""

    name: str
    warmup: int
    measure: Measure
    summarise: Summarise


def add_repeat_arguments(parser: argparse.ArgumentParser, suite: str, repeats: int) -> None:
    """`--repeat`, `--quick`, `--out` and `--again`, the same for all suites that use `measure_all`."""
    parser.add_argument(
        "--repeat", "--repeats", dest="repeat", type=positive, default=repeats, help=f"rounds (default: {repeats})"
    )
    parser.add_argument("--quick", action="store_true", help="the least that shows it works: a check, no claim")
    parser.add_argument("--out", type=Path, default=OUT / suite, help=f"folder of records (default: {OUT / suite})")
    parser.add_argument("--again", action="store_true", help="measure anew what has a record already")


def measure_all(
    suite: Suite, cases: Sequence[Case], repeats: int, folder: Path, again: bool, console: Console
) -> list[Record]:
    """The records of all cases, in their order, complete and written."""
    records = {case.name: _known(suite, case, folder, again) for case in cases}
    todo = [(repeat, case) for repeat, case in schedule(cases, repeats) if repeat not in _done(records[case.name])]
    skipped = len(cases) * repeats - len(todo)
    if skipped:
        console.print(f"{skipped} of {len(cases) * repeats} runs are recorded already (--again measures them anew)")
    with progress_bar(console) as bar:
        line = bar.add_task(suite.name, total=sum(case.ticks for _, case in todo))
        done = 0
        for repeat, case in todo:
            told = f"{case.name}, round {repeat + 1} of {repeats}"
            bar.update(line, description=told)

            def tick(text: str = "", told: str = told) -> None:
                bar.update(line, advance=1, description=f"{told}{text and ', '}{text}")

            run = suite.measure(case, repeat, tick)
            done += case.ticks
            bar.update(line, completed=done)
            records[case.name] = _with(suite, case, records[case.name], run)
            write_case(records[case.name], folder)
    return [records[case.name] for case in cases]


def schedule(cases: Sequence[Case], repeats: int) -> list[tuple[int, Case]]:
    """Alternate the cases, turning their order around in every other round."""
    return [
        (repeat, case) for repeat in range(repeats) for case in (cases if repeat % 2 == 0 else tuple(reversed(cases)))
    ]


def progress_bar(console: Console) -> Progress:
    """With the time it will take yet."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def report_console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=REPORT_WIDTH)


def start_run(repeat: int) -> Run:
    return Run(repeat=repeat, started_at=now())


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _known(suite: Suite, case: Case, folder: Path, again: bool) -> Record:
    """The record so far, where it is of the same configuration, source, machine and versions; else an empty one."""
    fresh = new_record(suite.name, case.name, case.config, suite.warmup)
    path = folder / case_file(suite.name, case.name)
    if again or not path.exists():
        return fresh
    found = read_record(path)
    return found.model_copy(update={"runs": found.good_runs}) if _comparable(found, fresh) else fresh


def _comparable(found: Record, fresh: Record) -> bool:
    def identity(record: Record) -> tuple[Any, ...]:
        machine = {key: record.hardware.get(key) for key in ("cpu", "cores", "gpus")}
        return record.config, record.warmup, record.git_commit, machine, record.versions

    return identity(found) == identity(fresh)


def _done(record: Record) -> set[int]:
    return {run.repeat for run in record.runs}


def _with(suite: Suite, case: Case, record: Record, run: Run) -> Record:
    """The record with one run more and figures of all of them. Facts of machine and command are those of now."""
    runs = sorted([*record.runs, run], key=lambda each: each.repeat)
    longer = new_record(suite.name, case.name, case.config, suite.warmup, runs=runs)
    return longer.model_copy(update={"results": suite.summarise(longer)})
