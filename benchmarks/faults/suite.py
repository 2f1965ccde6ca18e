"""What a fault in the middle of a run costs: steps done twice, seconds to recover, and the share of the time that still
went into training (effective training time ratio): an undisturbed run's seconds from its first step to its last over
the disturbed one's.

A tiny model on two ranks of this machine. The ratio is that of a run of these seconds with one fault; recovery is
mostly Python starting, so a longer run loses a smaller share. All runs end with the same adapter, bit for bit, or fail.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.train.errors import UserError
from rich.console import Console
from rich.table import Table

from ..report.others import faults_table
from ..shared.commands import WAIT_SECONDS, gemfleet, last_line, wait_for_step
from ..shared.quantiles import quantile
from ..shared.record import Record, Run, write_case
from ..shared.repeat import Case, Suite, Tick, add_repeat_arguments, measure_all, report_console, start_run
from ..shared.workplace import STEPS_PER_EPOCH, WORKERS, make_workplace
from .faults import FAULTS, UNDISTURBED, Fault, Scene
from .recovery import recovery_of

EPOCHS, QUICK_EPOCHS = 30, 6
SAVE_EVERY = 32
QUICK = (UNDISTURBED, "rank-killed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gemfleet bench faults`."""
    parser.add_argument("--cases", default=",".join(FAULTS), help="faults with commas between (default: all)")
    add_repeat_arguments(parser, "faults", repeats=3)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write records; the last line printed is a summary as JSON. 1: a run did not recover."""
    from gemfleet.cluster.local import connect

    names = QUICK if arguments.quick else chosen(arguments.cases)
    epochs = QUICK_EPOCHS if arguments.quick else EPOCHS
    repeats = 1 if arguments.quick else arguments.repeat
    console = report_console()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    connection = connect("local", workers=WORKERS + 2)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-faults-") as folder:
            steps = epochs * STEPS_PER_EPOCH
            place = make_workplace(Path(folder), connection.address, "bench-faults", epochs, SAVE_EVERY)
            suite = Suite("faults", 0, Disturbed(place, steps).measure, results)
            settings = {"model": "tiny", "workers": WORKERS, "steps": steps, "save_every": SAVE_EVERY}
            cases = [Case(name, {**settings, "fault": name}) for name in names]
            found = measure_all(suite, cases, repeats, arguments.out, arguments.again, console)
    finally:
        connection.close()
    records = with_ratios(found)
    for record in records:
        write_case(record, arguments.out)
    print_table(console, records)
    ratios = {record.case: record.results.get("effective_time_ratio") for record in records}
    print(json.dumps({"suite": "faults", "records": str(arguments.out), "effective_time_ratio": ratios}))
    return 0 if all(record.results.get("same_adapter") for record in records) else 1


def chosen(names: str) -> list[str]:
    """The faults asked for, and the undisturbed run that they are compared with."""
    asked = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in asked if name not in FAULTS]
    if unknown or not asked:
        raise UserError(f"--cases has {', '.join(unknown) or 'no name'}; choose from: {', '.join(FAULTS)}")
    return list(dict.fromkeys([UNDISTURBED, *asked]))


class Disturbed:
    """Whole runs of one configuration, each with one fault at a moment that its case and round decide."""

    def __init__(self, config: Path, steps: int) -> None:
        self._config, self._steps = config, steps

    def measure(self, case: Case, repeat: int, tick: Tick) -> Run:
        run, fault = start_run(repeat), FAULTS[case.name]
        home = self._config.parent / f"home-{case.name}-{repeat}"
        log = self._config.parent / f"{home.name}.log"
        try:
            facts = self._through(fault, home, log, random.Random(f"{case.name} {repeat}"))
        except (UserError, StopIteration) as error:
            words = str(error) or "training did not go on"
            return run.model_copy(update={"error": f"{words}; {last_line(log)}"})
        return run.model_copy(update={"facts": facts})

    def _through(self, fault: Fault, home: Path, log: Path, chance: random.Random) -> dict[str, Any]:
        settings = [part for setting in fault.settings for part in ("--set", setting)]
        facts: dict[str, Any] = {}
        with log.open("wb") as output:
            command = gemfleet(self._config.parent, home, "train", "run.yaml", *settings, output=output)
            try:
                if fault.cause is not None:
                    step = chance.randint(2 * SAVE_EVERY, self._steps // 2)
                    registry, run_id, _ = wait_for_step(home, command, lambda done: done["step"] >= step)
                    at, last = time.time(), newest_step(registry, run_id)
                    fault.cause(Scene(registry, run_id, command, chance))
                    if fault.resumes:
                        command = gemfleet(self._config.parent, home, "resume", run_id, output=output)
                code = command.wait(WAIT_SECONDS)
            finally:
                command.kill()
                command.wait()
        if code != 0:
            raise UserError(f"the run ended with code {code}")
        registry = RunRegistry(home / "gemfleet.db")
        (run,) = registry.list_runs()
        if fault.cause is not None:
            facts = {"at_step": last} | cost(registry, run.id, fault, at, last)
        steps = registry.metrics(run.id, kind="step")
        adapter = home / "runs" / run.id / "output" / "adapter_model.safetensors"
        return facts | {
            "training_seconds": steps[-1]["time"] - steps[0]["time"],
            "steps": len(steps),
            "adapter_sha256": hashlib.sha256(adapter.read_bytes()).hexdigest(),
        }


def cost(registry: RunRegistry, run_id: str, fault: Fault, at: float, last: int) -> dict[str, Any]:
    """Recovery and steps lost; where ranks are not restarted, the seconds to the next checkpoint."""
    if fault.restarts:
        return asdict(recovery_of(registry, run_id, at, last))
    after = next(entry for entry in registry.checkpoints(run_id) if entry["created_at"] > at)
    return {"resumed": "-", "steps_lost": 0, "seconds": after["created_at"] - at}


def newest_step(registry: RunRegistry, run_id: str) -> int:
    newest = registry.latest_metrics(run_id, "step")
    return 0 if newest is None else int(newest["step"])


def results(record: Record) -> dict[str, Any]:
    """Medians over rounds, and the adapter that all of them ended with; empty where no run ended well."""
    facts = [run.facts for run in record.good_runs]
    if not facts:
        return {}
    found: dict[str, Any] = {"training_seconds": median(facts, "training_seconds")}
    if "seconds" in facts[0]:
        found |= {
            "recovery_seconds": median(facts, "seconds"),
            "recovery_seconds_worst": max(fact["seconds"] for fact in facts),
            "steps_lost_worst": max(fact["steps_lost"] for fact in facts),
        }
    return found


def with_ratios(records: Sequence[Record]) -> list[Record]:
    """What can be said only beside the undisturbed run: the share of time, and whether the adapter is the same."""
    undisturbed = next(record for record in records if record.case == UNDISTURBED)
    same = {run.facts["adapter_sha256"] for run in undisturbed.good_runs}
    return [record.model_copy(update={"results": beside(record, undisturbed, same)}) for record in records]


def beside(record: Record, undisturbed: Record, same: set[str]) -> dict[str, Any]:
    if not record.results or not undisturbed.results:
        return record.results
    ended = [run.facts.get("adapter_sha256") for run in record.runs]  # None of a run that failed
    return record.results | {
        "effective_time_ratio": undisturbed.results["training_seconds"] / record.results["training_seconds"],
        "same_adapter": len(same) == 1 and set(ended) == same,
    }


def median(facts: Sequence[Mapping[str, Any]], name: str) -> float:
    return quantile([fact[name] for fact in facts], 0.5)


def print_table(console: Console, records: Sequence[Record]) -> None:
    figures = faults_table(records)
    table = Table(*figures.columns, title="What a fault costs")
    for row in figures.rows:
        table.add_row(*row)
    console.print(table)
    for record in records:
        for run in record.runs:
            if run.error:
                console.print(f"{record.case}, round {run.repeat + 1}: {run.error}", highlight=False)
