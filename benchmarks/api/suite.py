"""The status API under load, in two cases.

load: a fixed rate of requests and many open event streams on a `gemfleet serve`; how long answers took.
training: what one request a second and two streams cost a training run (`--cases training`; it trains the 270M).

Of several rounds the worst is told.

  gemfleet bench api --quick
  gemfleet bench api --rate 200 --seconds 60 --streams 100
  gemfleet bench api --cases training --pairs 40
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from gemfleet.benchmarks.shared.section import Section, Table, taken
from gemfleet.benchmarks.shared.suite import Add, Case, Options, Record, Run, Suite, Tick, names, positive

from .server import QUANTILES, measure_load
from .training import RATE, SEGMENT_SECONDS, STREAMS, TRAIN, measure_watching

CASES = {"load": measure_load, "training": measure_watching}
WATCHING = {"rate": RATE, "streams": STREAMS, "segment_seconds": SEGMENT_SECONDS, "run": TRAIN}


class Api(Suite):
    name = "api"
    repeats = 1
    quick: Mapping[str, Any] = {"rate": 50.0, "seconds": 4.0, "streams": 10, "pairs": 2}

    def add_options(self, add: Add) -> None:
        add("--cases", default="load", help=f"of {', '.join(CASES)}, with commas between (default: load)")
        add("--rate", type=float, default=200.0, help="load: requests a second (default: 200)")
        add("--seconds", type=float, default=60.0, help="load: how long (default: 60)")
        add("--streams", type=int, default=100, help="load: open event streams beside them (default: 100)")
        add("--pairs", type=positive, default=14, help="training: stretches watched and not (default: 14)")

    def cases(self, options: Options) -> Sequence[Case]:
        load = {name: getattr(options, name) for name in ("rate", "seconds", "streams")}
        configs = {"load": load, "training": {**WATCHING, "pairs": options.pairs}}
        return [Case(name, configs[name]) for name in names("--cases", options.cases, tuple(CASES))]

    def measure(self, options: Options, case: Case, run: Run, tick: Tick) -> None:
        load = [round(each, 2) for each in psutil.getloadavg()]
        run.facts = {**CASES[case.name](case.config), "load_average": load}

    def results(self, record: Record) -> dict[str, Any]:
        found = [run.facts for run in record.good_runs]
        figure = "p99_ms" if "p99_ms" in found[0]["summary"] else "slow_down"
        return dict(max(found, key=lambda facts: float(facts["summary"][figure])))

    def section(self, records: Sequence[Record]) -> Section:
        tables, notes = [], []
        for results in (record.results for record in records if record.results):
            found = results["summary"]
            if "by_kind" in results:
                rows = [
                    [k, str(f["requests"]), *(f"{f[q]:.1f}" for q in QUANTILES)] for k, f in results["by_kind"].items()
                ]
                tables.append(Table(("request", "count", *QUANTILES), rows))
                told, memory = found["events_told"], found["memory_mib"]
                notes.append(
                    f"{found['streams']} streams were told {told['least']} to {told['most']} events; the server used "
                    f"{found['server_cores']:.2f} cores, {memory[0]:.0f} MiB before and {memory[-1]:.0f} MiB after."
                )
            else:
                steps = {kind: found[kind] for kind in ("watched", "alone")}
                rows = [[kind, str(f["steps"]), f"{1000 * f['mean_seconds']:.1f}"] for kind, f in steps.items()]
                tables.append(Table(("a training step", "steps", "mean ms"), rows))
                error, of_medians = f"{found['standard_error']:.2%}", f"{found['slow_down_of_medians']:+.2%}"
                notes.append(
                    f"Watching costs a step {found['slow_down']:+.2%} (error {error}; of medians {of_medians})."
                )
        return Section("The status API", taken(records), tables, notes=notes)

    def misses(self, records: Sequence[Record]) -> list[str]:
        failed = {record.case: record.results.get("summary", {}).get("failures", 0) for record in records}
        return [f"{case}: {count} requests failed" for case, count in failed.items() if count]


SUITE = Api()
