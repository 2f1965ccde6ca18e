"""How long a person waits: from `gemfleet train` to the first training step, and from `gemfleet resume` to the next.

A tiny model on a Ray cluster of this machine that runs already, so that what is measured is starting: Python and
imports, Ray's workers, the process group. The run's own registry and logs say where the time goes.

  gemfleet bench launch --quick
  gemfleet bench launch --repeat 5
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gemfleet.benchmarks.shared.measuring import Case, Measure, Tick
from gemfleet.benchmarks.shared.record import Record, Run
from gemfleet.benchmarks.shared.section import Chart, Section, Series, Table, taken
from gemfleet.benchmarks.shared.statistics import median, spread
from gemfleet.benchmarks.shared.suite import Suite
from gemfleet.benchmarks.shared.whole_runs import COMMAND, WORKERS, Gemfleet, local_cluster, tiny_run
from gemfleet.train.errors import UserError

from .phases import breakdown, first_line_after

TARGET_SECONDS = 25.0
COMMANDS = {"train": ("train", "run.yaml"), "resume": ("resume", "latest")}
# More epochs than anybody waits for: each run is ended once it has shown a step.
EPOCHS = 500.0


class Launch(Suite):
    name = "launch"

    def cases(self, options: Namespace) -> Sequence[Case]:
        return [Case(name, {"model": "tiny", "workers": WORKERS, "command": name}) for name in COMMANDS]

    @contextmanager
    def measuring(self, options: Namespace) -> Iterator[Measure]:
        """One launch and one resume of it make a round, whichever case comes first in it."""
        taken_runs: dict[int, dict[str, Run]] = {}
        with local_cluster() as address, tempfile.TemporaryDirectory(prefix="bench-launch-") as folder:
            config = tiny_run(Path(folder), address, EPOCHS, "never")

            def measure(case: Case, run: Run, tick: Tick) -> None:
                if run.repeat not in taken_runs:
                    taken_runs[run.repeat] = one_round(config, config.parent / f"home-{run.repeat}", run)
                found = taken_runs[run.repeat][case.name]
                run.step_seconds, run.facts, run.error = found.step_seconds, found.facts, found.error

            yield measure

    def results(self, record: Record) -> dict[str, Any]:
        """Seconds to the first step, and medians of the phases."""
        phases = [run.facts["phases"] for run in record.good_runs]
        return {
            "seconds": spread([run.step_seconds[0] for run in record.good_runs]),
            "target_seconds": TARGET_SECONDS,
            "phases": {name: median([each.get(name, 0.0) for each in phases]) for name in phases[0]},
        }

    def section(self, records: Sequence[Record]) -> Section:
        good = [record for record in records if record.results]
        phases = list(dict.fromkeys(name for record in good for name in record.results["phases"]))
        cases = [f"gemfleet {record.case}" for record in good]
        values = [[record.results["phases"].get(name, 0.0) for record in good] for name in phases]
        values.append([record.results["seconds"]["median"] for record in good])
        rows = [[n, *(f"{x:.2f}" for x in row)] for n, row in zip([*phases, "in all"], values, strict=True)]
        series = [Series(name, cases, row) for name, row in zip(phases, values, strict=False)]
        chart = Chart("launch", "From the command to the first step", "stack", "", "seconds", series)
        table = Table(("phase, median seconds", *cases), rows)
        return Section("Starting", taken(records), [table], [chart] if good else [])

    def summary(self, records: Sequence[Record]) -> dict[str, Any]:
        found = {record.case: round(record.results["seconds"]["median"], 2) for record in records if record.results}
        return {"seconds_to_first_step": found}


def one_round(config: Path, home: Path, run: Run) -> dict[str, Run]:
    """A launch, then a resume of its run. Where the launch fails, so does the resume."""
    found: dict[str, Run] = {}
    for name in COMMANDS:
        found[name] = run.model_copy(deep=True)
        try:
            first_step(config, home, COMMANDS[name], found[name])
        except (UserError, ValueError, subprocess.SubprocessError) as error:
            found[name].error = str(error)
            return {**dict.fromkeys(COMMANDS, found[name]), **found}
    return found


def first_step(config: Path, home: Path, command: Sequence[str], run: Run) -> None:
    """Start the command, wait for the first step it reports, and have the run stopped."""
    started = time.time()
    with Gemfleet(config.parent, home, *command) as gemfleet:
        registry, run_id, step = gemfleet.step(lambda step: step["time"] >= started)
        stop = [*COMMAND, "stop", run_id, "--wait"]
        subprocess.run(stop, env=gemfleet.environment, check=True, capture_output=True)
        gemfleet.process.wait(60)
    ready = first_line_after(home / "runs" / run_id / "logs" / "rank-0.log", started)
    run.step_seconds = [step["time"] - started]
    run.facts = {"phases": breakdown(started, registry.events(run_id), ready, step["time"])}


SUITE = Launch()
