"""How long a person waits: from `gemfleet train` to the first training step, from `gemfleet resume` to the next, and
from the loss of a rank to the next.

A tiny model on a Ray cluster of this machine that runs already, so that what is measured is starting: Python and
imports, Ray's workers, the process group. The run's own registry and logs say where the time goes.

  gemfleet bench launch --quick
  gemfleet bench launch --repeat 5

Two builds in turn, one round of each after the other, each with its own records:

  for n in 1 2 3 4 5; do
    old/bin/gemfleet bench launch --repeat $n --out A; new/bin/gemfleet bench launch --repeat $n --out B
  done
  gemfleet bench compare A B
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from gemfleet.benchmarks.shared.record import median, spread
from gemfleet.benchmarks.shared.section import Chart, Section, Series, Table, taken
from gemfleet.benchmarks.shared.suite import Case, Measure, Options, Record, Run, Suite, Tick
from gemfleet.benchmarks.shared.whole_runs import COMMAND, WORKERS, Gemfleet, tiny_runs
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.train.errors import UserError

COMMANDS = {"train": ("train", "run.yaml"), "resume": ("resume", "latest")}
RESTART = "restart"
TARGET_SECONDS = {"train": 12.0, "resume": 12.0, RESTART: 5.0}
SETTLED_SECONDS = 25.0  # a run that lasts has its spare processes by then
EPOCHS = 500.0  # more than anybody waits for: each run is ended once it has shown a step
LOG_TIME = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) ")
START, LAST = "Python, imports, input checks", "loading the model, first step"
PHASES = {
    "queued": "joining Ray, status API",
    "preflight": "placing ranks",
    "staging": "staging the model",
    "preparing_data": "tokenising and packing",
    "training": "actors, Ray Train, processes of the ranks, process group",
}
LOST = "seeing that a rank is lost"
RESTART_PHASES = {EventKind.RANK_FAILED: "processes of the ranks", EventKind.ATTEMPT: "process group"}


class Launch(Suite):
    name = "launch"

    def cases(self, options: Options) -> Sequence[Case]:
        return [Case(name, {"model": "tiny", "workers": WORKERS, "command": name}) for name in TARGET_SECONDS]

    @contextmanager
    def measuring(self, options: Options) -> Iterator[Measure]:
        """A launch, a resume of it, and the loss of a rank then make a round, whichever case comes first in it."""
        rounds: dict[int, dict[str, Run]] = {}
        with tiny_runs(EPOCHS, "never") as folder:

            def measure(case: Case, run: Run, tick: Tick) -> None:
                if run.repeat not in rounds:
                    rounds[run.repeat] = one_round(folder, folder / f"home-{run.repeat}", run)
                found = rounds[run.repeat][case.name]
                run.step_seconds, run.facts, run.error = found.step_seconds, found.facts, found.error

            yield measure

    def results(self, record: Record) -> dict[str, Any]:
        """Seconds to the first step, and medians of the phases."""
        phases = [run.facts["phases"] for run in record.good_runs]
        medians = {name: median([each.get(name, 0.0) for each in phases]) for name in phases[0]}
        seconds = spread([run.step_seconds[0] for run in record.good_runs])
        return {"seconds": seconds, "target_seconds": TARGET_SECONDS[record.case], "phases": medians}

    def section(self, records: Sequence[Record]) -> Section:
        good = [record for record in records if record.results]
        cases = [title(record.case) for record in good]
        values = {
            name: [r.results["phases"].get(name, 0.0) for r in good] for r in good for name in r.results["phases"]
        }
        series = [Series(name, cases, row) for name, row in values.items()]
        chart = Chart("launch", "From the command to the first step", "stack", "", "seconds", series)
        values["in all"] = [record.results["seconds"]["median"] for record in good]
        table = Table(("phase, median seconds", *cases), [[n, *(f"{x:.2f}" for x in row)] for n, row in values.items()])
        return Section("Starting", taken(records), [table], [chart] if good else [])

    def summary(self, records: Sequence[Record]) -> dict[str, Any]:
        found = {record.case: round(record.results["seconds"]["median"], 2) for record in records if record.results}
        return {"seconds_to_first_step": found}


def one_round(folder: Path, home: Path, run: Run) -> dict[str, Run]:
    """A launch, then a resume of its run. Where the launch fails, so does the resume."""
    found = {name: run.model_copy(deep=True) for name in TARGET_SECONDS}
    for name, command in COMMANDS.items():
        try:
            first_step(folder, home, command, found[name], found[RESTART] if name == "resume" else None)
        except (UserError, ValueError, subprocess.SubprocessError) as error:
            for other in found.values():
                other.error = None if other.facts else str(error)
            break
    return found


def first_step(folder: Path, home: Path, command: Sequence[str], run: Run, restart: Run | None = None) -> None:
    """Start the command, wait for the first step it reports, and have the run stopped. restart: lose a rank before"""
    started = time.time()
    with Gemfleet(folder, home, *command) as gemfleet:
        registry, run_id, step = gemfleet.step(lambda step: step["time"] >= started)
        if restart is not None:
            lose_rank(gemfleet, registry, run_id, restart)
        stop = [*COMMAND, "stop", run_id, "--wait"]
        subprocess.run(stop, env=gemfleet.environment, check=True, capture_output=True)
        gemfleet.process.wait(60)
    ready = first_line_after(home / "runs" / run_id / "logs" / "rank-0.log", started)
    run.step_seconds = [step["time"] - started]
    run.facts = {"phases": breakdown(started, registry.events(run_id), ready, step["time"])}


def lose_rank(gemfleet: Gemfleet, registry: RunRegistry, run_id: str, run: Run) -> None:
    """Kill a rank once the run has been training for a while, and wait for the first step after that."""
    time.sleep(SETTLED_SECONDS)
    lost, at = registry.ranks(run_id)[-1], time.time()
    os.kill(lost["pid"], signal.SIGKILL)

    def resumed() -> float | None:
        return next((e["time"] for e in registry.events(run_id) if e["kind"] == "resume" and e["time"] > at), None)

    since = gemfleet.wait_for(resumed, "training went on")
    _, _, step = gemfleet.step(lambda step: step["time"] >= since)
    run.step_seconds = [step["time"] - at]
    ready = first_line_after(gemfleet.home / "runs" / run_id / "logs" / "rank-0.log", since_attempt(registry, run_id))
    told = {event["kind"]: event["time"] for event in registry.events(run_id) if event["time"] > at}
    moments = [(LOST, at), *((name, told[kind]) for kind, name in RESTART_PHASES.items()), (LAST, ready)]
    ends = [moment for _, moment in moments[1:]] + [step["time"]]
    run.facts = {"phases": {name: end - begin for (name, begin), end in zip(moments, ends, strict=True)}}


def since_attempt(registry: RunRegistry, run_id: str) -> float:
    """When the newest group of ranks began, in seconds since the epoch."""
    return max(float(event["time"]) for event in registry.events(run_id) if event["kind"] == EventKind.ATTEMPT)


def title(case: str) -> str:
    return "a rank lost" if case == RESTART else f"gemfleet {case}"


def breakdown(
    started: float, events: Sequence[Mapping[str, Any]], ranks_ready: float, first_step: float
) -> dict[str, float]:
    """Seconds of each phase, in order; they add up to `first_step - started`. All moments are seconds since the epoch.
    Of the run's events those count that enter a state after `started`, each state once."""
    entered: dict[str, float] = {}
    for event in events:
        if event["kind"] == "state" and event["time"] >= started:
            entered.setdefault(event["data"]["state"], event["time"])
    known = [(PHASES[state], at) for state, at in entered.items() if state in PHASES and at <= ranks_ready]
    moments = [(START, started), *known, (LAST, ranks_ready)]
    ends = [at for _, at in moments[1:]] + [first_step]
    return {name: end - at for (name, at), end in zip(moments, ends, strict=True)}


def first_line_after(log: Path, started: float) -> float:
    """When the first line later than `started` was written to a rank's log; raises ValueError where there is none."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if found := LOG_TIME.match(line):
            at = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").timestamp() + int(found[2]) / 1000
            if at >= started:
                return at
    raise ValueError(f"{log.name} has no line after the launch")


SUITE = Launch()
