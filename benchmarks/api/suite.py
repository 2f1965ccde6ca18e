"""The status API under load, in two cases.

load: a fixed rate of requests and many open event streams on a `gemfleet serve`; how long answers took.
training: what one request a second and two streams cost a training run (`--cases training`; it trains the 270M).

Of several rounds the worst is told.

  gemfleet bench api --quick
  gemfleet bench api --rate 200 --seconds 60 --streams 100
  gemfleet bench api --cases training --pairs 40
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
from gemfleet.benchmarks.shared.measuring import Case, Measure, Tick
from gemfleet.benchmarks.shared.record import Record, Run
from gemfleet.benchmarks.shared.section import Section, Table, taken
from gemfleet.benchmarks.shared.suite import Suite, names, positive

from .server import measure_load
from .training import RATE, SEGMENT_SECONDS, STREAMS, TRAIN, measure_watching

CASES = {"load": measure_load, "training": measure_watching}
REQUESTS = ("request", "count", "p50 ms", "p90 ms", "p99 ms", "max ms")
STEPS = ("a training step", "steps", "mean ms")


class Api(Suite):
    name = "api"
    repeats = 1
    quick: Mapping[str, Any] = {"rate": 50.0, "seconds": 4.0, "streams": 10, "pairs": 2}

    def add_options(self, add: Callable[..., Any]) -> None:
        add("--cases", default="load", help=f"of {', '.join(CASES)}, with commas between (default: load)")
        add("--rate", type=float, default=200.0, help="load: requests a second (default: 200)")
        add("--seconds", type=float, default=60.0, help="load: how long (default: 60)")
        add("--streams", type=int, default=100, help="load: open event streams beside them (default: 100)")
        add("--pairs", type=positive, default=14, help="training: stretches watched and not (default: 14)")

    def cases(self, options: Namespace) -> Sequence[Case]:
        run = {
            "rate": RATE,
            "streams": STREAMS,
            "segment_seconds": SEGMENT_SECONDS,
            "pairs": options.pairs,
            "run": TRAIN,
        }
        configs = {"load": {name: getattr(options, name) for name in ("rate", "seconds", "streams")}, "training": run}
        return [Case(name, configs[name]) for name in names("--cases", options.cases, tuple(CASES))]

    @contextmanager
    def measuring(self, options: Namespace) -> Iterator[Measure]:
        def measure(case: Case, run: Run, tick: Tick) -> None:
            load = [round(each, 2) for each in psutil.getloadavg()]
            run.facts = {**CASES[case.name](case.config), "load_average": load}

        yield measure

    def results(self, record: Record) -> dict[str, Any]:
        found = [run.facts for run in record.good_runs]
        figure = "p99_ms" if "p99_ms" in found[0]["summary"] else "slow_down"
        return dict(max(found, key=lambda facts: float(facts["summary"][figure])))

    def section(self, records: Sequence[Record]) -> Section:
        tables, notes = [], []
        for record in (record for record in records if record.results):
            found = record.results["summary"]
            if "by_kind" in record.results:
                tables.append(Table(REQUESTS, [_request(*kind) for kind in record.results["by_kind"].items()]))
                told, memory = found["events_told"], found["memory_mib"]
                notes.append(
                    f"{found['streams']} streams were told {told['least']} to {told['most']} events; the server used "
                    f"{found['server_cores']:.2f} cores, {memory[0]:.0f} MiB before and {memory[-1]:.0f} MiB after."
                )
            else:
                tables.append(Table(STEPS, [_step(kind, found[kind]) for kind in ("watched", "alone")]))
                error = f"(standard error {found['standard_error']:.2%}; of the medians {found['slow_down_of_medians']:+.2%})"
                notes.append(f"Watching costs a step {found['slow_down']:+.2%} {error}.")
        return Section("The status API", taken(records), tables, notes=notes)

    def misses(self, records: Sequence[Record]) -> list[str]:
        failed = {record.case: record.results.get("summary", {}).get("failures", 0) for record in records}
        return [f"{case}: {count} requests failed" for case, count in failed.items() if count]

    def summary(self, records: Sequence[Record]) -> dict[str, Any]:
        return {"results": {record.case: record.results.get("summary") for record in records}}


def _request(kind: str, found: Mapping[str, Any]) -> list[str]:
    names = ("p50_ms", "p90_ms", "p99_ms", "max_ms")
    return [kind, str(found["requests"]), *(f"{found[name]:.1f}" for name in names)]


def _step(kind: str, found: Mapping[str, Any]) -> list[str]:
    return [kind, str(found["steps"]), f"{1000 * found['mean_seconds']:.1f}"]


SUITE = Api()
