"""How long a person waits: from `gemfleet train` to the first training step, and from `gemfleet resume` to the next.

A tiny model on a Ray cluster of this machine that runs already, so that what is measured is starting: Python and
imports, Ray's workers, the process group. The run's own registry and logs say where the time goes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemfleet.train.errors import UserError
from rich.console import Console
from rich.table import Table

from ..shared.commands import COMMAND, WAIT_SECONDS, environment, gemfleet, last_line, wait_for_step
from ..shared.quantiles import quantile, spread
from ..shared.record import Record, Run
from ..shared.repeat import Case, Suite, Tick, add_repeat_arguments, measure_all, report_console, start_run
from ..shared.workplace import WORKERS, make_workplace
from .phases import breakdown, first_line_after

TARGET_SECONDS = 25.0
CASES = ("train", "resume")
# More epochs than anybody waits for: each run is ended once it has shown a step.
EPOCHS = 500.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gemfleet bench launch`."""
    add_repeat_arguments(parser, "launch", repeats=3)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the breakdown, write records; the last line printed is a summary as JSON."""
    from gemfleet.cluster.local import connect

    if arguments.quick:
        arguments.repeat = 1
    console = report_console()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    connection = connect("local", workers=WORKERS + 2)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-launch-") as folder:
            rounds = Rounds(make_workplace(Path(folder), connection.address, "bench-launch", EPOCHS))
            suite = Suite("launch", 0, rounds.measure, results)
            cases = [Case(name, {"model": "tiny", "workers": WORKERS, "command": name}) for name in CASES]
            records = measure_all(suite, cases, arguments.repeat, arguments.out, arguments.again, console)
    finally:
        connection.close()
    print_breakdown(console, records)
    medians = {record.case: round(record.results["seconds"]["median"], 2) for record in records if record.results}
    print(json.dumps({"suite": "launch", "records": str(arguments.out), "seconds_to_first_step": medians}))
    return 1 if any(run.error for record in records for run in record.runs) else 0


class Rounds:
    """One launch and one resume of it make a round; each case takes its part of it."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._taken: dict[int, dict[str, Run]] = {}

    def measure(self, case: Case, repeat: int, tick: Tick) -> Run:
        if repeat not in self._taken:
            home = self._config.parent / f"home-{repeat}"
            launched = first_step(self._config, home, ("train", "run.yaml"))
            again = launched if launched.error else first_step(self._config, home, ("resume", "latest"))
            self._taken[repeat] = {"train": launched, "resume": again}
        return self._taken[repeat][case.name].model_copy(update={"repeat": repeat})


def first_step(config: Path, home: Path, command: Sequence[str]) -> Run:
    """Start the command, wait for the first step it reports, and have the run stopped."""
    run, started = start_run(0), time.time()
    with (config.parent / "command.log").open("wb") as log:
        process = gemfleet(config.parent, home, *command, output=log)
        try:
            registry, run_id, step = wait_for_step(home, process, lambda step: step["time"] >= started)
            subprocess.run([*COMMAND, "stop", run_id, "--wait"], env=environment(home), check=True, capture_output=True)
            process.wait(WAIT_SECONDS)
        except (UserError, subprocess.SubprocessError) as error:
            return run.model_copy(update={"error": f"{error}; {last_line(config.parent / 'command.log')}"})
        finally:
            process.kill()
            process.wait()
    ready = first_line_after(home / "runs" / run_id / "logs" / "rank-0.log", started)
    phases = breakdown(started, registry.events(run_id), ready, step["time"])
    return run.model_copy(update={"step_seconds": [step["time"] - started], "facts": {"phases": phases}})


def results(record: Record) -> dict[str, Any]:
    """Seconds to the first step, and medians of the phases; empty where no run ended well."""
    runs = record.good_runs
    if not runs:
        return {}
    names = runs[0].facts["phases"]
    return {
        "seconds": spread([run.step_seconds[0] for run in runs]),
        "target_seconds": TARGET_SECONDS,
        "phases": {name: quantile([run.facts["phases"].get(name, 0.0) for run in runs], 0.5) for name in names},
    }


def print_breakdown(console: Console, records: Sequence[Record]) -> None:
    table = Table("phase (median seconds)", title="From the command to the first step")
    for record in records:
        table.add_column(f"gemfleet {record.case}", justify="right")
    names = dict.fromkeys(name for record in records for name in record.results.get("phases", {}))
    for name in names:
        values = [record.results.get("phases", {}).get(name) for record in records]
        table.add_row(name, *("-" if value is None else f"{value:.2f}" for value in values))
    totals = [record.results["seconds"]["median"] if record.results else None for record in records]
    table.add_row("in all", *("failed" if total is None else f"{total:.2f}" for total in totals), style="bold")
    console.print(table)
    for record in records:
        for run in record.runs:
            if run.error:
                console.print(f"gemfleet {record.case}, round {run.repeat + 1}: {run.error}", highlight=False)
