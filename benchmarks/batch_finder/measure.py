"""The measurements: every size, gemfleet's search, accelerate's search, training, pairs of sizes. One rank on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemfleet.benchmarks.shared.processes import ProcessError, answer
from gemfleet.train.batch_finder.finder import Variant, find_batch
from gemfleet.train.batch_finder.probes.group import GroupSettings, ProbeGroup
from gemfleet.train.batch_finder.probes.process import LocalProbe
from gemfleet.train.batch_finder.setting import RankPlace, group_settings, probe_tasks, tokens_per_row
from gemfleet.train.batch_finder.variant_search import SearchLimits
from gemfleet.train.config.schema import TrainConfig

Tell = Callable[[str], None]
CHILDREN = "gemfleet.benchmarks.batch_finder.children"
THREADS = 2


@dataclass(frozen=True)
class Size:
    """One size of the exhaustive measurement: tokens per second of its fastest pass, peak in bytes."""

    rows: int
    speed: float
    peak_bytes: int


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
                    raise RuntimeError(f"{rows} rows could not be measured: {trial.message}")
                seconds.setdefault(rows, []).append(trial.seconds)
                peaks[rows] = max(peaks.get(rows, 0), trial.ranks[0].peak_bytes)
                tell(f"every size, round {repeat + 1} of {repeats}: {rows} rows")
    full = tokens_per_row(config, 1)
    return [Size(rows, rows * full / min(times), peaks[rows]) for rows, times in sorted(seconds.items())]


def gemfleet_search(config: TrainConfig, folder: Path, largest: int, tell: Tell) -> dict[str, Any]:
    """The finder as a run uses it, without its cache.

    trials: sizes it tried; memory_trials: the most under one variant that looked for the limit
    """
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


def accelerate_search(config: TrainConfig, folder: Path, largest: int, cap_bytes: int) -> dict[str, Any]:
    """The same in a fresh process; `error` where it found nothing."""
    found = in_child("accelerate", config.with_micro(1), folder, largest_rows=largest, cap_bytes=cap_bytes)
    return {**found, "trials": found.get("calls", 0), "memory_trials": found.pop("calls", 0)}


def train_under_cap(config: TrainConfig, folder: Path, rows: int) -> dict[str, Any]:
    """Real training with the cap of `config`: its peak and its steps, or the `error` that ended it."""
    return in_child("training", config.with_micro(rows), folder)


def in_child(function: str, config: TrainConfig, folder: Path, **more: int) -> dict[str, Any]:
    task = {"config": config.model_dump(mode="json", by_alias=True), "model_folder": str(folder), **more}
    try:
        return answer(f"{CHILDREN}:{function}", task, threads=THREADS)
    except ProcessError as failed:
        return {"error": failed.words[:300]}


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


def share_of(ratios: Sequence[float]) -> float:
    """The median: one disturbed repeat does not decide."""
    return statistics.median(ratios)
