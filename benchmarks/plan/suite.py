"""Train two steps of several shapes, each in a fresh process on this machine's CPU, and set the peak of its resident
set beyond its baseline against what `gemfleet plan` foretells. Weights are random; no model is read. The exit code is 1
where a prediction is off by more than a fifth.

  gemfleet bench plan --quick
  gemfleet bench plan --cases 270m-bf16-512x2,270m-bf16-512x2-fsdp2-2ranks --repeat 3
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gemfleet.benchmarks.shared import machine
from gemfleet.benchmarks.shared.processes import in_ranks
from gemfleet.benchmarks.shared.section import GIB, Chart, Section, Series, Table, taken
from gemfleet.benchmarks.shared.suite import Add, Case, Options, Record, Run, Suite, Tick, names, positive

from .cases import CASES

TOLERANCE = 0.20
PARTS = ("weights", "activations", "logits", "runtime")
COLUMNS = ("shape-dtype-length x rows", *(f"{part} GiB" for part in PARTS), "foretold GiB", "measured GiB", "error")


class Plan(Suite):
    name = "plan"
    repeats = 1
    quick: Mapping[str, Any] = {"cases": "270m-bf16-512x2"}

    def add_options(self, add: Add) -> None:
        add("--cases", default=",".join(CASES), help="names with commas between (default: all)")
        add("--threads", type=positive, default=machine.usable_cores(), help="default: one per core")

    def cases(self, options: Options) -> Sequence[Case]:
        fixed, chosen = {"threads": options.threads, "device": "cpu"}, names("--cases", options.cases, tuple(CASES))
        return [Case(name, {**asdict(CASES[name]), **fixed}) for name in chosen]

    def measure(self, options: Options, case: Case, run: Run, tick: Tick) -> None:
        """One fresh process for each rank, which share the cores; the rank that takes most counts."""
        from gemfleet.benchmarks.shared.random_base import save_random_base

        shape, found = CASES[case.name], list[dict[str, int]]()
        threads = max(1, options.threads // shape.ranks)
        with tempfile.TemporaryDirectory(prefix="plan-") as folder:
            if shape.needs_files:
                save_random_base(shape.shape(), shape.torch_dtype, Path(folder))
            task = {"case": case.name, "weights": folder, "threads": threads}
            target = "gemfleet.benchmarks.plan.child:train_rank"
            in_ranks(target, task, lambda _, event: found.append(event), ranks=shape.ranks, threads=threads)
        run.facts = dict(max(found, key=lambda facts: facts["measured_bytes"]))

    def results(self, record: Record) -> dict[str, Any]:
        """The largest peak of all runs, and the error of the prediction as a share of it."""
        worst = max((run.facts for run in record.good_runs), key=lambda facts: int(facts["measured_bytes"]))
        predicted = CASES[record.case].predicted()
        error = predicted.total / worst["measured_bytes"] - 1
        return {"predicted_bytes": {**asdict(predicted), "total": predicted.total}, **worst, "error": error}

    def section(self, records: Sequence[Record]) -> Section:
        good = [record for record in records if record.results]
        cases, found = [record.case for record in good], [record.results for record in good]
        foretold = [results["predicted_bytes"]["total"] / GIB for results in found]
        measured = [results["measured_bytes"] / GIB for results in found]
        series = [Series("foretold", cases, foretold), Series("measured", cases, measured)]
        chart = Chart("plan-memory", "Memory that the plan foretells", "bar", "", "GiB", series)
        note = "Measured: peak of the resident set beyond what it was once everything was imported. Random weights."
        table = Table(COLUMNS, [cells(record) for record in good])
        return Section("The plan's memory", taken(records), [table], [chart] if good else [], [note])

    def misses(self, records: Sequence[Record]) -> list[str]:
        off = {r.case: r.results["error"] for r in records if abs(r.results.get("error", 0.0)) > TOLERANCE}
        return [f"{case}: the prediction is off by {error:+.1%}" for case, error in off.items()]

    def summary(self, records: Sequence[Record]) -> dict[str, Any]:
        errors: list[float] = [record.results["error"] for record in records if record.results]
        return {"cases": len(errors), "worst_error": sorted(errors, key=abs)[-1] if errors else None}


def cells(record: Record) -> list[str]:
    found = record.results
    sizes = [*(found["predicted_bytes"][part] for part in (*PARTS, "total")), found["measured_bytes"]]
    return [record.case, *(f"{size / GIB:.2f}" for size in sizes), f"{found['error']:+.1%}"]


SUITE = Plan()
