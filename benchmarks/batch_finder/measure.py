"""The measurements: every size, gemfleet's search, accelerate's search, training, pairs of sizes. One rank on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from gemfleet.benchmarks.shared.processes import in_ranks
from gemfleet.train.batch_finder.finder import Variant, find_batch
from gemfleet.train.batch_finder.probes.group import GroupSettings, ProbeGroup
from gemfleet.train.batch_finder.probes.process import LocalProbe
from gemfleet.train.batch_finder.setting import RankPlace, group_settings, probe_tasks, tokens_per_row
from gemfleet.train.batch_finder.variant_search import SearchLimits
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError

Tell = Callable[[str], None]
SEARCHERS = ("gemfleet", "accelerate")
THREADS = 2


class Size(NamedTuple):
    """One size of the exhaustive measurement: tokens per second of its fastest pass, peak in bytes."""

    rows: int
    speed: float
    peak_bytes: int


def measure_all(settings: Mapping[str, Any], folder: Path, tell: Tell) -> dict[str, Any]:
    """Every size; then for each cap both searches and training; at last what was chosen beside the best, in pairs."""
    length = {"train": "demo", "max_length": settings["max_length"]}
    fixed = {"batch": {"global": 64, "micro": "probe"}, "strategy": "ddp", "activation_checkpointing": "off"}
    config = TrainConfig.model_validate({"model": "demo", "data": length, **fixed})
    found: list[dict[str, Any]] = []
    sizes = every_size(config, folder, settings["largest"], settings["rounds"], tell)
    for rows in settings["room"]:
        cap = cap_for(rows, sizes, config.batch.memory_margin)
        ours = gemfleet_search(with_cap(config, cap), folder, settings["largest"], tell)
        tell(f"training with {ours['rows']} rows")
        training = train_under_cap(with_cap(config, cap), folder, ours["rows"])
        tell("accelerate")
        limits = {"largest_rows": settings["largest"], "cap_bytes": cap}
        theirs = in_child("accelerate", config.with_micro(1), folder, **limits)
        results: dict[str, Any] = {"gemfleet": ours, "training": training, "accelerate": theirs}
        found.append({"cap_bytes": cap, "best_rows": best_size(cap, sizes), **results})
    searches = [(cap[name], cap["best_rows"]) for cap in found for name in SEARCHERS if "rows" in cap[name]]
    pairs = sorted({(search["rows"], best) for search, best in searches})
    ratios = compare(config, folder, pairs, settings["pairs"], tell)
    for search, best in searches:
        mine = ratios[search["rows"], best]
        search |= {"of_best": median(mine), "ratios": mine}  # one disturbed repeat does not decide
    return {"every_size": [size._asdict() for size in sizes], "under_caps": found}


def cap_for(rows: int, sizes: Sequence[Size], margin: float) -> int:
    """A cap under which `rows` rows fit with the margin, and half a row more."""
    growth = (sizes[-1].peak_bytes - sizes[0].peak_bytes) / (len(sizes) - 1)
    return int((sizes[0].peak_bytes + (rows - 0.5) * growth) / (1 - margin))


def best_size(cap_bytes: int, sizes: Sequence[Size]) -> int:
    """The fastest of all sizes whose peak is within the whole cap."""
    return max((size for size in sizes if size.peak_bytes <= cap_bytes), key=lambda size: size.speed).rows


def with_cap(config: TrainConfig, cap_bytes: int | None) -> TrainConfig:
    batch = config.batch.model_copy(update={"device_memory_limit": cap_bytes})
    return config.model_copy(update={"batch": batch})


def probes(config: TrainConfig, folder: Path, settings: GroupSettings | None = None) -> ProbeGroup:
    """One rank; settings: without a cap unless others are given."""
    tasks = probe_tasks(config, [RankPlace(str(folder), 0, 1, 0)])
    return ProbeGroup([LocalProbe()], tasks, settings or GroupSettings(0.0, 600.0))


def every_size(config: TrainConfig, folder: Path, largest: int, repeats: int, tell: Tell) -> list[Size]:
    """All sizes up to `largest` in turn, `repeats` times over, so that what disturbs the machine disturbs all alike."""
    seconds: dict[int, list[float]] = {}
    peaks: dict[int, int] = {}
    with probes(config, folder) as group:
        for repeat in range(repeats):
            for rows in range(1, largest + 1) if repeat % 2 == 0 else range(largest, 0, -1):
                trial = group.try_rows(rows)
                if trial.failure is not None:
                    raise UserError(f"{rows} rows could not be measured: {trial.message}")
                seconds.setdefault(rows, []).append(trial.seconds)
                peaks[rows] = max(peaks.get(rows, 0), trial.ranks[0].peak_bytes)
                tell(f"every size, round {repeat + 1} of {repeats}: {rows} rows")
    full = tokens_per_row(config, 1)
    return [Size(rows, rows * full / min(times), peaks[rows]) for rows, times in sorted(seconds.items())]


def gemfleet_search(config: TrainConfig, folder: Path, largest: int, tell: Tell) -> dict[str, Any]:
    """The finder as a run uses it, without its cache. memory_trials: the most under one variant, to find the limit."""
    started = time.perf_counter()
    found = find_batch(
        [Variant(config.strategy)],
        lambda _: probes(config, folder, group_settings(config)),
        SearchLimits(largest, config.batch.probe_timeout_s),
        tokens_per_row(config, 1),
        lambda _, trial: tell(f"gemfleet: {trial.rows} rows"),
    )
    seconds, memory_trials = time.perf_counter() - started, max(found.memory_trials.values())
    return {"rows": found.choice.rows, "seconds": seconds, "trials": found.trials, "memory_trials": memory_trials}


def train_under_cap(config: TrainConfig, folder: Path, rows: int) -> dict[str, Any]:
    """Real training with the cap of `config`: its peak and its steps, or the `error` that ended it."""
    return in_child("training", config.with_micro(rows), folder)


def in_child(function: str, config: TrainConfig, folder: Path, **more: int) -> dict[str, Any]:
    """What a function of `children` tells in a fresh process; `error` where it ended early."""
    task = {"config": config.model_dump(mode="json", by_alias=True), "model_folder": str(folder), **more}
    target, found = f"gemfleet.benchmarks.batch_finder.children:{function}", dict[str, Any]()
    try:
        in_ranks(target, task, lambda _, event: found.update(event), threads=THREADS)
    except UserError as failed:
        found["error"] = str(failed)[:300]
    return found


def compare(
    config: TrainConfig, folder: Path, pairs: Sequence[tuple[int, int]], repeats: int, tell: Tell
) -> dict[tuple[int, int], list[float]]:
    """Speed of the one as a share of the other's, by repeat, of each pair (chosen, best) in turn and without a cap.

    A machine that slows down or warms up hits both alike. The same size twice is a share of 1.
    """
    with probes(config, folder) as group:

        def ratio(pair: tuple[int, int], repeat: int) -> float:
            speed = {}
            for rows in pair if repeat % 2 == 0 else reversed(pair):
                tell(f"pair: {rows} rows")
                speed[rows] = rows / group.try_rows(rows).seconds
            return speed[pair[0]] / speed[pair[1]]

        return {pair: [ratio(pair, n) for n in range(repeats)] if len(set(pair)) > 1 else [1.0] for pair in pairs}
