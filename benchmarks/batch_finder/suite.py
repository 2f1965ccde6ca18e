"""Find the micro-batch under simulated memory caps: time, trials, and the speed of what was chosen beside the best of
all sizes that fit, measured one by one and then in pairs. Training at that size must stay below the cap. Beside it
accelerate's `find_executable_batch_size` on the same model and cap.

One rank on this machine's CPU; the figures say nothing about GPUs. The exit code is 1 where a figure is missed.

  gemfleet bench batch-finder --quick
  gemfleet bench batch-finder --model 270m --max-length 128 --largest 10 --room 2,4,6,8
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gemfleet.benchmarks.shared.measuring import Case, Measure, Tick
from gemfleet.benchmarks.shared.models import REAL, SHAPES, model_folder
from gemfleet.benchmarks.shared.record import Record, Run
from gemfleet.benchmarks.shared.section import GIB, Chart, Section, Series, Table, taken
from gemfleet.benchmarks.shared.suite import Suite, numbers, positive
from gemfleet.train.batch_finder.search import MAX_MEMORY_TRIALS
from gemfleet.train.config.schema import TrainConfig

from .measure import (
    Size,
    Tell,
    accelerate_search,
    compare,
    every_size,
    gemfleet_search,
    share_of,
    train_under_cap,
    with_cap,
)

SEARCHERS = ("gemfleet", "accelerate")
SHARE_OF_BEST = 0.97
COLUMNS = (
    *("model", "cap GiB", "rows found", "of best", "seconds", "memory trials", "training's peak GiB", "best of all"),
    *("accelerate's rows", "its share of best", "its seconds", "its trials"),
)


class BatchFinder(Suite):
    name = "batch-finder"
    repeats = 1
    quick: Mapping[str, Any] = {"model": "tiny", "max_length": 64, "largest": 4, "room": "2", "rounds": 1, "pairs": 1}

    def add_options(self, add: Callable[..., Any]) -> None:
        add("--model", choices=SHAPES, default=REAL, help=f"size (default: {REAL})")
        add("--model-folder", type=Path, help=f"weights of the {REAL} in place of the packaged ones")
        add("--max-length", type=positive, default=128, help="tokens in a row (default: 128)")
        add("--largest", type=positive, default=16, help="largest size measured (default: 16)")
        add("--room", default="2,4,8,12", help="caps, as rows that fit below each with the margin (default: 2,4,8,12)")
        add("--rounds", type=positive, default=3, help="rounds over every size (default: 3)")
        add("--pairs", type=positive, default=5, help="how often each size found meets the best (default: 5)")

    def cases(self, options: Namespace) -> Sequence[Case]:
        config = {name: getattr(options, name) for name in ("model", "max_length", "largest", "rounds", "pairs")}
        config |= {"room": numbers("--room", options.room), "device": "cpu"}
        if options.model_folder is not None:
            config["model"] = options.model_folder.resolve().name
        ticks = options.rounds * options.largest + 3 * len(config["room"])
        return [Case(f"{config['model']}-{options.max_length}", config, ticks)]

    @contextmanager
    def measuring(self, options: Namespace) -> Iterator[Measure]:
        def measure(case: Case, run: Run, tick: Tick) -> None:
            run.facts = measure_all_caps(case.config, model_folder(options.model, options.model_folder), tick)

        yield measure

    def results(self, record: Record) -> dict[str, Any]:
        """Every size's best over all runs, and the caps of all of them."""
        facts, best = [run.facts for run in record.good_runs], {}
        for size in (size for fact in facts for size in fact["every_size"]):
            known = best.setdefault(size["rows"], dict(size))
            known |= {name: max(known[name], size[name]) for name in ("speed", "peak_bytes")}
        return {"every_size": list(best.values()), "under_caps": [cap for fact in facts for cap in fact["under_caps"]]}

    def section(self, records: Sequence[Record]) -> Section:
        good = [record for record in records if record.results]
        rows = [row(_of_what(record), cap) for record in good for cap in record.results["under_caps"]]
        series = []
        for record in good:
            sizes = record.results["every_size"]
            speeds = [size["speed"] / sizes[0]["speed"] for size in sizes]
            series.append(Series(_of_what(record), [size["rows"] for size in sizes], speeds))
        title, y_title = "Speed of every micro-batch", "supervised tokens/s, times one row's"
        chart = Chart("batch-finder", title, "line", "rows in a pass", y_title, series)
        note = "Best: the fastest of all sizes whose measured peak stays under the cap."
        return Section("The micro-batch that is found", taken(records), [Table(COLUMNS, rows)], [chart], [note])

    def misses(self, records: Sequence[Record]) -> list[str]:
        return [sentence for record in records if record.results for sentence in misses(record.results["under_caps"])]

    def summary(self, records: Sequence[Record]) -> dict[str, Any]:
        shares = [cap["gemfleet"]["of_best"] for record in records for cap in record.results.get("under_caps", [])]
        return {"worst_share_of_best": round(min(shares), 4) if shares else None}


def measure_all_caps(settings: Mapping[str, Any], folder: Path, tell: Tell) -> dict[str, Any]:
    """Every size; then for each cap both searches and training; at last what was chosen beside the best, in pairs."""
    config, largest = _config(settings["max_length"]), settings["largest"]
    sizes = every_size(config, folder, largest, settings["rounds"], tell)
    caps = [cap_for(rows, sizes, config.batch.memory_margin) for rows in settings["room"]]
    found = [_under_cap(config, folder, largest, cap, sizes, tell) for cap in caps]
    searches = [(cap[name], cap["best_rows"]) for cap in found for name in SEARCHERS if "rows" in cap[name]]
    pairs = sorted({(search["rows"], best) for search, best in searches})
    ratios = compare(config, folder, pairs, settings["pairs"], tell)
    for search, best in searches:
        mine = ratios[search["rows"], best]
        search |= {"of_best": share_of(mine), "ratios": mine}
    return {"every_size": [asdict(size) for size in sizes], "under_caps": found}


def _under_cap(
    config: TrainConfig, folder: Path, largest: int, cap: int, sizes: Sequence[Size], tell: Tell
) -> dict[str, Any]:
    capped = with_cap(config, cap)
    ours = gemfleet_search(capped, folder, largest, tell)
    tell(f"training with {ours['rows']} rows")
    training = train_under_cap(capped, folder, ours["rows"])
    tell("accelerate")
    accelerate = accelerate_search(config, folder, largest, cap)
    found = {"gemfleet": ours, "training": training, "accelerate": accelerate}
    return {"cap_bytes": cap, "best_rows": best_size(cap, sizes), **found}


def cap_for(rows: int, sizes: Sequence[Size], margin: float) -> int:
    """A cap under which `rows` rows fit with the margin, and half a row more."""
    growth = (sizes[-1].peak_bytes - sizes[0].peak_bytes) / (len(sizes) - 1)
    return int((sizes[0].peak_bytes + (rows - 0.5) * growth) / (1 - margin))


def best_size(cap_bytes: int, sizes: Sequence[Size]) -> int:
    """The fastest of all sizes whose peak is within the whole cap."""
    return max((size for size in sizes if size.peak_bytes <= cap_bytes), key=lambda size: size.speed).rows


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


def _config(max_length: int) -> TrainConfig:
    values = {
        "model": "demo",
        "data": {"train": "demo", "max_length": max_length},
        "batch": {"global": 64, "micro": "probe"},
        "strategy": "ddp",
        "activation_checkpointing": "off",
    }
    return TrainConfig.model_validate(values)


def _of_what(record: Record) -> str:
    return f"{record.config['model']}, rows of {record.config['max_length']}"


def row(model: str, cap: Mapping[str, Any]) -> list[str]:
    ours, other, training = cap["gemfleet"], cap["accelerate"], cap["training"]
    peak = training["error"] if "error" in training else f"{training['peak_bytes'] / GIB:.2f}"
    figures = [str(ours["rows"]), f"{ours['of_best']:.1%}", f"{ours['seconds']:.0f}", str(ours["memory_trials"]), peak]
    theirs = [other.get("error", "found nothing"), "", "", ""]
    if "rows" in other:
        share = f"{other['of_best']:.1%}" if "of_best" in other else ""
        theirs = [str(other["rows"]), share, f"{other['seconds']:.0f}", str(other["trials"])]
    return [model, f"{cap['cap_bytes'] / GIB:.2f}", *figures, str(cap["best_rows"]), *theirs]


SUITE = BatchFinder()
