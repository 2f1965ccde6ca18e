"""What a fault in the middle of a run costs: steps done twice, seconds to recover, and the share of the time that still
went into training (effective training time ratio): an undisturbed run's seconds from its first step to its last over
the disturbed one's.

A tiny model on two ranks of this machine. The ratio is that of a run of these seconds with one fault; recovery is
mostly Python starting, so a longer run loses a smaller share. All runs end with the same adapter, bit for bit, or fail.

  gemfleet bench faults --quick
  gemfleet bench faults --cases rank-killed,driver-killed --repeat 1
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gemfleet.benchmarks.shared.record import median
from gemfleet.benchmarks.shared.section import Chart, Section, Series, Table, taken
from gemfleet.benchmarks.shared.suite import Add, Case, Measure, Options, Record, Run, Suite, Tick, names, positive
from gemfleet.benchmarks.shared.whole_runs import STEPS_PER_EPOCH, WORKERS, Gemfleet, tiny_runs
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.train.errors import UserError

from .faults import FAULTS, UNDISTURBED, Fault, Scene
from .recovery import recovery_of

SAVE_EVERY = 32
COLUMNS = ("fault", "recovery s", "worst", "steps lost, worst", "training s", "effective time", "adapter")


class Faults(Suite):
    name = "faults"
    quick: Mapping[str, Any] = {"cases": f"{UNDISTURBED},rank-killed", "epochs": 6}

    def add_options(self, add: Add) -> None:
        add("--cases", default=",".join(FAULTS), help="faults with commas between (default: all)")
        add("--epochs", type=positive, default=30, help=f"of a run, {STEPS_PER_EPOCH} steps each (default: 30)")

    def cases(self, options: Options) -> Sequence[Case]:
        """The faults asked for, and the undisturbed run that they are compared with."""
        steps = options.epochs * STEPS_PER_EPOCH
        settings = {"model": "tiny", "workers": WORKERS, "steps": steps, "save_every": SAVE_EVERY}
        return [Case(name, {**settings, "fault": name}) for name in chosen(options.cases)]

    @contextmanager
    def measuring(self, options: Options) -> Iterator[Measure]:
        """Each run has its fault at a moment that its case and round decide."""
        with tiny_runs(options.epochs, SAVE_EVERY) as folder:

            def measure(case: Case, run: Run, tick: Tick) -> None:
                chance = random.Random(f"{case.name} {run.repeat}")
                step = chance.randint(2 * SAVE_EVERY, options.epochs * STEPS_PER_EPOCH // 2)
                try:
                    home = folder / f"home-{case.name}-{run.repeat}"
                    run.facts = whole_run(folder, home, FAULTS[case.name], step, chance)
                except StopIteration:
                    raise UserError("training did not go on") from None

            yield measure

    def results(self, record: Record) -> dict[str, Any]:
        """Medians over rounds, and the worst."""
        facts = [run.facts for run in record.good_runs]
        found: dict[str, Any] = {"training_seconds": median([fact["training_seconds"] for fact in facts])}
        if seconds := [fact["seconds"] for fact in facts if "seconds" in fact]:
            found |= {"recovery_seconds": median(seconds), "recovery_seconds_worst": max(seconds)}
            found["steps_lost_worst"] = max(fact["steps_lost"] for fact in facts)
        return found

    def side_by_side(self, records: list[Record]) -> list[Record]:
        """With the share of time, and whether the adapter is the undisturbed run's."""
        undisturbed = next(record for record in records if record.case == UNDISTURBED)
        same = {run.facts["adapter_sha256"] for run in undisturbed.good_runs}
        for record in (record for record in records if record.results and undisturbed.results):
            ratio = undisturbed.results["training_seconds"] / record.results["training_seconds"]
            ended = {run.facts.get("adapter_sha256") for run in record.runs}  # None of a run that failed
            record.results |= {"effective_time_ratio": ratio, "same_adapter": len(same) == 1 and ended == same}
        return records

    def section(self, records: Sequence[Record]) -> Section:
        seconds = {r.case: r.results["recovery_seconds"] for r in records if "recovery_seconds" in r.results}
        series = Series("recovery", list(seconds), list(seconds.values()))
        chart = Chart("faults", "Seconds to recover", "bar", "", "seconds", [series])
        steps = records[0].config["steps"]
        note = f"Runs of {steps} steps, each with one fault; a longer run loses a smaller share to the same seconds."
        table = Table(COLUMNS, [cells(record) for record in records])
        return Section("Faults", taken(records), [table], [chart] if seconds else [], [note])

    def misses(self, records: Sequence[Record]) -> list[str]:
        return [f"{r.case}: the adapter is not the same" for r in records if not r.results.get("same_adapter")]

    def summary(self, records: Sequence[Record]) -> dict[str, Any]:
        return {"effective_time_ratio": {r.case: r.results.get("effective_time_ratio") for r in records}}


def chosen(asked: str) -> list[str]:
    return list(dict.fromkeys([UNDISTURBED, *names("--cases", asked, tuple(FAULTS))]))


def whole_run(folder: Path, home: Path, fault: Fault, step: int, chance: random.Random) -> dict[str, Any]:
    """Train to the end, with the fault once this step is done. StopIteration where training did not go on."""
    settings = [part for setting in fault.settings for part in ("--set", setting)]
    with ExitStack() as stack:
        command = stack.enter_context(Gemfleet(folder, home, "train", "run.yaml", *settings))
        if fault.cause is not None:
            registry, run_id, _ = command.step(lambda done: done["step"] >= step)
            at, last = time.time(), (registry.latest_metrics(run_id, "step") or {"step": 0})["step"]
            fault.cause(Scene(registry, run_id, command.process, chance))
            if fault.resumes:
                command = stack.enter_context(Gemfleet(folder, home, "resume", run_id))
        command.end()
    registry = RunRegistry(home / "gemfleet.db")
    (run,) = registry.list_runs()
    facts = {"at_step": last} | cost(registry, run.id, fault, at, last) if fault.cause is not None else {}
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
        return recovery_of(registry, run_id, at, last)._asdict()
    after = next(entry for entry in registry.checkpoints(run_id) if entry["created_at"] > at)
    return {"resumed": "-", "steps_lost": 0, "seconds": after["created_at"] - at}


def cells(record: Record) -> list[str]:
    found = record.results
    if "effective_time_ratio" not in found:
        return [record.case, *["-"] * 5, "failed"]
    recovery = [found.get("recovery_seconds", "-"), found.get("recovery_seconds_worst", "-")]
    costs = [f"{value:.1f}" if isinstance(value, float) else value for value in (*recovery, found["training_seconds"])]
    end = [f"{found['effective_time_ratio']:.1%}", "the same" if found["same_adapter"] else "differs"]
    return [record.case, *costs[:2], str(found.get("steps_lost_worst", "-")), costs[2], *end]


SUITE = Faults()
