"""Turns `micro: auto` into a number: probes on the places the run will have, or what they found before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemfleet.cluster.run_registry import RunState
from gemfleet.train.batch_finder.cache import BatchCache, CachedBatch, batch_cache_file
from gemfleet.train.batch_finder.finder import Found, Variant, find_batch
from gemfleet.train.batch_finder.group import ProbeGroup
from gemfleet.train.batch_finder.report import table, trial_facts, trial_line
from gemfleet.train.batch_finder.setting import (
    RankPlace,
    group_settings,
    probe_tasks,
    search_limits,
    tokens_per_row,
    variants_of,
    with_variant,
)
from gemfleet.train.batch_finder.trial import Trial
from gemfleet.train.config import TrainConfig
from gemfleet.train.interfaces import BlockSource
from gemfleet.train.resolve import resolve_model_folder

from .batch_key import batch_key
from .placement import Placement
from .probe_host import HostFacts, RayProbe, probe_hosts

if TYPE_CHECKING:
    from .run import Run

# kind, sentence, facts
Tell = Callable[[str, str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class FindTask:
    """What the search needs of a run. model_folders: for each Ray node id, the folder there that holds the model."""

    config: TrainConfig
    placement: Placement
    source: BlockSource
    model_folders: Mapping[str, str]
    timeout_s: float


def find_micro(
    run: Run, placement: Placement, source: BlockSource, model_folders: Mapping[str, str], use_cache: bool
) -> TrainConfig:
    """The phase of a run: as configured, with the micro-batch found where it is `auto`."""
    train = run.config.train
    if train.batch.micro != "auto":
        return train
    run.enter(RunState.FINDING_BATCH, "finding batch")

    def tell(kind: str, sentence: str, facts: Mapping[str, Any]) -> None:
        run.note(sentence)
        run.registry.add_event(run.id, kind, sentence, facts)

    key = batch_key(train, placement, model_folders, resolve_model_folder(train.model))
    task = FindTask(train, placement, source, model_folders, run.config.cluster.wait_for_resources_s)
    return settle_micro(task, BatchCache(batch_cache_file()) if use_cache else None, key, tell)


def settle_micro(task: FindTask, cache: BatchCache | None, key: str, tell: Tell) -> TrainConfig:
    """The configuration with a number for `micro: auto`. `cache` is None where the person wants a new search."""
    known = cache.get(key) if cache is not None else None
    if known is not None:
        sentence = f"micro-batch {known.rows} ({known.variant}), as found before; the first step checks it"
        tell("batch_cached", sentence, {"variant": known.variant, "rows": known.rows, "key": key})
        return _settled(task.config, known.variant, known.rows)
    found = _search(task, tell)
    for line in table(found):
        tell("batch_table", line, {})
    choice = found.choice
    facts = {"variant": choice.variant, "rows": choice.rows, "trials": found.trials, "key": key}
    tell("batch_found", f"micro-batch {choice.rows} ({choice.variant}) after {found.trials} trials", facts)
    if cache is not None:
        cache.put(key, CachedBatch(choice.variant, choice.rows, choice.speed, choice.peak_bytes))
    return _settled(task.config, choice.variant, choice.rows)


def _settled(config: TrainConfig, variant: str, rows: int) -> TrainConfig:
    chosen = next(v for v in variants_of(config) if v.name == variant)
    return with_variant(config, chosen.changes).with_micro(rows)


def _search(task: FindTask, tell: Tell) -> Found:
    config, world_size = task.config, task.placement.workers

    def told(variant: str, trial: Trial) -> None:
        tell("batch_trial", trial_line(variant, trial), trial_facts(variant, trial))

    with probe_hosts(task.placement, task.timeout_s) as hosts:
        places = rank_places([facts for _, facts in hosts], task.model_folders)

        @contextmanager
        def open_group(variant: Variant) -> Iterator[ProbeGroup]:
            tasks = probe_tasks(with_variant(config, variant.changes), places)
            handles: list[RayProbe] = [handle for handle, _ in hosts]
            with ProbeGroup(handles, tasks, group_settings(config)) as group:
                yield group

        limits = search_limits(task.source, config, world_size)
        return find_batch(variants_of(config), open_group, limits, tokens_per_row(config, world_size), told)


def rank_places(hosts: Sequence[HostFacts], model_folders: Mapping[str, str]) -> list[RankPlace]:
    """Ranks as the hosts are listed, numbered within each node. A rank of the run holds Ray besides."""
    on_node = Counter(host.node for host in hosts)
    seen: Counter[str] = Counter()
    places = []
    for host in hosts:
        places.append(
            RankPlace(model_folders[host.node], seen[host.node], on_node[host.node], besides_bytes=host.resident_bytes)
        )
        seen[host.node] += 1
    return places
