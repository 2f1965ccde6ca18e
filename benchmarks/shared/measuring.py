"""Measure several cases several times over, in turn, and keep each result as soon as it is there.

Cases alternate and their order turns around in every other round, so that a machine that slows down or warms up hits
them alike. What has a record of the same configuration, source, machine and versions is not measured again: a suite
that was interrupted goes on where it was, and `--repeat 5` after `--repeat 3` adds two rounds.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from gemfleet.train.errors import UserError
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from .record import Record, Run, case_file, new_record, now, read_record, write_case

Tick = Callable[[str], None]


class Case(NamedTuple):
    """`config` decides what is measured and is compared when a suite is resumed; warmup: steps that do not count."""

    name: str
    config: dict[str, Any]
    warmup: int = 0


# Fills in the run, and says by its `Tick` where it is. A UserError becomes the run's error; the next case is measured.
Measure = Callable[[Case, Run, Tick], None]
Measuring = Callable[[], AbstractContextManager[Measure]]
Results = Callable[[Record], dict[str, Any]]


def measure_all(
    suite: str, cases: Sequence[Case], measuring: Measuring, results: Results, options: Namespace, console: Console
) -> list[Record]:
    """The records of all cases, in their order, complete and written. options: `repeat`, `out`, `again`.

    measuring: entered only where something is left to measure; results: figures of the runs that ended well
    """
    records = {case.name: _known(suite, case, options) for case in cases}
    every = schedule(cases, options.repeat)
    todo = [(n, case) for n, case in every if n not in {run.repeat for run in records[case.name].runs}]
    if len(todo) < len(every):
        console.print(
            f"{len(every) - len(todo)} of {len(every)} runs are recorded already (--again measures them anew)"
        )
    if todo:
        columns = (*Progress.get_default_columns(), TimeElapsedColumn())
        with measuring() as measure, Progress(*columns, console=console) as bar:
            line = bar.add_task(suite, total=len(todo))
            for repeat, case in todo:
                told, run = f"{case.name}, round {repeat + 1} of {options.repeat}", Run(repeat=repeat, started_at=now())
                bar.update(line, description=told)
                try:
                    measure(case, run, lambda text, told=told: bar.update(line, description=f"{told}, {text}"))  # type: ignore[misc]
                except UserError as error:
                    run.error = str(error)
                bar.advance(line)
                runs = sorted([*records[case.name].runs, run], key=lambda each: each.repeat)
                record = new_record(suite, case.name, case.config, case.warmup, runs=runs)
                record.results = results(record) if record.good_runs else {}
                write_case(record, options.out)
                records[case.name] = record
    return [records[case.name] for case in cases]


def schedule(cases: Sequence[Case], repeats: int) -> list[tuple[int, Case]]:
    """Alternate the cases, turning their order around in every other round."""
    return [(repeat, case) for repeat in range(repeats) for case in list(cases)[:: 1 if repeat % 2 == 0 else -1]]


def _known(suite: str, case: Case, options: Namespace) -> Record:
    """The record so far, where it is of the same configuration, source, machine and versions; else an empty one."""

    def identity(record: Record) -> tuple[Any, ...]:
        machine = {key: record.hardware.get(key) for key in ("cpu", "cores", "gpus")}
        return record.config, record.warmup, record.git_commit, machine, record.versions

    fresh, path = new_record(suite, case.name, case.config, case.warmup), options.out / case_file(suite, case.name)
    if options.again or not path.exists():
        return fresh
    found = read_record(path)
    return found.model_copy(update={"runs": found.good_runs}) if identity(found) == identity(fresh) else fresh
