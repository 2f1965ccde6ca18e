"""Find the micro-batch under simulated memory caps: time, trials, and the speed of what was chosen beside the best of
all sizes that fit, measured one by one and then in pairs. Training at that size must stay below the cap. Beside it
accelerate's `find_executable_batch_size` on the same model and cap.

One rank on this machine's CPU; the figures say nothing about GPUs. The exit code is 1 where a figure is missed.

  gemfleet bench batch-finder --quick
  gemfleet bench batch-finder --model 270m --max-length 128 --largest 10 --room 2,4,6,8
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemfleet.benchmarks.shared.models import REAL, SHAPES, model_folder
from gemfleet.benchmarks.shared.section import GIB, Chart, Section, Series, Table, taken
from gemfleet.benchmarks.shared.suite import Add, Case, Options, Record, Run, Suite, Tick, numbers, positive
from gemfleet.train.batch_finder.search import MAX_MEMORY_TRIALS

from .measure import measure_all

SHARE_OF_BEST = 0.97
COLUMNS = (
    *("model", "cap GiB", "rows found", "of best", "seconds", "memory trials", "training's peak GiB", "best of all"),
    *("accelerate's rows", "its share of best", "its seconds", "its trials"),
)


class BatchFinder(Suite):
    name = "batch-finder"
    repeats = 1
    quick: Mapping[str, Any] = {"model": "tiny", "max_length": 64, "largest": 4, "room": "2", "rounds": 1, "pairs": 1}

    def add_options(self, add: Add) -> None:
        add("--model", choices=SHAPES, default=REAL, help=f"size (default: {REAL})")
        add("--model-folder", type=Path, help=f"weights of the {REAL} in place of the packaged ones")
        add("--max-length", type=positive, default=128, help="tokens in a row (default: 128)")
        add("--largest", type=positive, default=16, help="largest size measured (default: 16)")
        add("--room", default="2,4,8,12", help="caps, as rows that fit below each with the margin (default: 2,4,8,12)")
        add("--rounds", type=positive, default=3, help="rounds over every size (default: 3)")
        add("--pairs", type=positive, default=5, help="how often each size found meets the best (default: 5)")

    def cases(self, options: Options) -> Sequence[Case]:
        config = {name: getattr(options, name) for name in ("model", "max_length", "largest", "rounds", "pairs")}
        config |= {"room": numbers("--room", options.room), "device": "cpu"}
        if options.model_folder is not None:
            config["model"] = options.model_folder.resolve().name
        return [Case(f"{config['model']}-{options.max_length}", config)]

    def measure(self, options: Options, case: Case, run: Run, tick: Tick) -> None:
        run.facts = measure_all(case.config, model_folder(options.model, options.model_folder), tick)

    def results(self, record: Record) -> dict[str, Any]:
        """Every size of the last run, and the caps of all runs."""
        facts = [run.facts for run in record.good_runs]
        return {**facts[-1], "under_caps": [cap for fact in facts for cap in fact["under_caps"]]}

    def section(self, records: Sequence[Record]) -> Section:
        rows, series = [], []
        for record in (record for record in records if record.results):
            of_what = f"{record.config['model']}, rows of {record.config['max_length']}"
            rows += [row(of_what, cap) for cap in record.results["under_caps"]]
            sizes = record.results["every_size"]
            speeds = [size["speed"] / sizes[0]["speed"] for size in sizes]
            series.append(Series(of_what, [size["rows"] for size in sizes], speeds))
        title, y_title = "Speed of every micro-batch", "supervised tokens/s, times one row's"
        chart = Chart("batch-finder", title, "line", "rows in a pass", y_title, series)
        note = "Best: the fastest of all sizes whose measured peak stays under the cap."
        return Section("The micro-batch that is found", taken(records), [Table(COLUMNS, rows)], [chart], [note])

    def misses(self, records: Sequence[Record]) -> list[str]:
        """One pair says nothing of speed."""
        judged = [record for record in records if record.results and record.config["pairs"] > 1]
        return [sentence for record in judged for sentence in misses(record.results["under_caps"])]


def misses(caps: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each figure that is not what it should be."""
    found = []
    for each in caps:
        cap, ours, training = each["cap_bytes"], each["gemfleet"], each["training"]
        under = f"under {cap / GIB:.2f} GiB"
        if ours["of_best"] < SHARE_OF_BEST:
            found.append(f"{under}: {ours['rows']} rows are {ours['of_best']:.1%} of the best ({each['best_rows']})")
        if ours["memory_trials"] > MAX_MEMORY_TRIALS:
            found.append(f"{under}: {ours['memory_trials']} trials for the largest size")
        if training.get("error") or training["peak_bytes"] > cap:
            found.append(f"{under}: training took {training.get('error') or training['peak_bytes']}")
    return found


def row(model: str, cap: Mapping[str, Any]) -> list[str]:
    """Cells of `COLUMNS`."""
    ours, other, training = cap["gemfleet"], cap["accelerate"], cap["training"]
    peak = training["error"] if "error" in training else f"{training['peak_bytes'] / GIB:.2f}"
    figures = [str(ours["rows"]), f"{ours['of_best']:.1%}", f"{ours['seconds']:.0f}", str(ours["memory_trials"]), peak]
    theirs = [other.get("error", ""), "", "", ""]
    if "rows" in other:
        theirs = [str(other["rows"]), f"{other['of_best']:.1%}", f"{other['seconds']:.0f}", str(other["trials"])]
    return [model, f"{cap['cap_bytes'] / GIB:.2f}", *figures, str(cap["best_rows"]), *theirs]


SUITE = BatchFinder()
