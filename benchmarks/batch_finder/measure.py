"""The three measurements: every size, gemfleet's search, accelerate's search. One rank on this machine's CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gemfleet.train.batch_finder.finder import Variant, find_batch
from gemfleet.train.batch_finder.probes.group import GroupSettings, ProbeGroup
from gemfleet.train.batch_finder.probes.process import LocalProbe
from gemfleet.train.batch_finder.setting import RankPlace, group_settings, probe_tasks, tokens_per_row
from gemfleet.train.batch_finder.variant_search import SearchLimits
from gemfleet.train.config.schema import TrainConfig

from ..shared.children import child_environment

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """One size of the exhaustive measurement: tokens per second of its fastest pass, peak in bytes."""

    rows: int
    speed: float
    peak_bytes: int


@dataclass(frozen=True)
class Search:
    """What a search came to. `trials`: sizes or steps it tried; `memory_trials`: the most under one variant that looked
    for the limit."""

    rows: int
    seconds: float
    trials: int
    memory_trials: int


def with_cap(config: TrainConfig, cap_bytes: int | None) -> TrainConfig:
    batch = config.batch.model_copy(update={"device_memory_limit": cap_bytes})
    return config.model_copy(update={"batch": batch})


def every_size(config: TrainConfig, model_folder: Path, largest: int, repeats: int, tell: Tell) -> list[Size]:
    """All sizes up to `largest` in turn, `repeats` times over, so that what disturbs the machine disturbs all alike."""
    tasks = probe_tasks(config, [RankPlace(str(model_folder), 0, 1, 0)])
    seconds: dict[int, list[float]] = {}
    peaks: dict[int, int] = {}
    with ProbeGroup([LocalProbe()], tasks, GroupSettings(0.0, 600.0)) as group:
        for repeat in range(repeats):
            order = range(1, largest + 1) if repeat % 2 == 0 else range(largest, 0, -1)
            for rows in order:
                trial = group.try_rows(rows)
                if trial.failure is not None:
                    raise RuntimeError(f"{rows} rows could not be measured: {trial.message}")
                seconds.setdefault(rows, []).append(trial.seconds)
                peaks[rows] = max(peaks.get(rows, 0), trial.ranks[0].peak_bytes)
                tell(f"every size, round {repeat + 1} of {repeats}: {rows} rows")
    full = tokens_per_row(config, 1)
    return [Size(rows, rows * full / min(times), peaks[rows]) for rows, times in sorted(seconds.items())]


def gemfleet_search(config: TrainConfig, model_folder: Path, largest: int, tell: Tell) -> Search:
    """The finder as a run uses it, without its cache."""
    started = time.perf_counter()
    tasks = probe_tasks(config, [RankPlace(str(model_folder), 0, 1, 0)])
    found = find_batch(
        [Variant(config.strategy)],
        lambda _: ProbeGroup([LocalProbe()], tasks, group_settings(config)),
        SearchLimits(largest, config.batch.probe_timeout_s),
        tokens_per_row(config, 1),
        lambda _, trial: tell(f"gemfleet: {trial.rows} rows"),
    )
    return Search(found.choice.rows, time.perf_counter() - started, found.trials, max(found.memory_trials.values()))


def accelerate_search(config: TrainConfig, model_folder: Path, largest: int, cap_bytes: int) -> Search | str:
    """The same in a fresh process; a sentence where it found nothing."""
    task: dict[str, Any] = {
        "config": config.with_micro(1).model_dump(mode="json", by_alias=True),
        "model_folder": str(model_folder),
        "largest_rows": largest,
        "cap_bytes": cap_bytes,
    }
    command = [sys.executable, "-m", f"{__package__}.accelerate_child", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(threads=2), check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return lines[-1][:300] if lines else f"ended with code {done.returncode}"
    answer = json.loads(done.stdout.splitlines()[-1])
    return Search(answer["rows"], answer["seconds"], answer["calls"], answer["calls"])


def as_record(search: Search | str) -> dict[str, Any]:
    return {"error": search} if isinstance(search, str) else asdict(search)
