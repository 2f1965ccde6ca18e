"""Turns an open micro-batch into a number: by the plan, by probes where the ranks will run, or by an earlier search."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.launcher.placement import Placement
from gemfleet.train.batch_finder.cache import BatchCache, CachedBatch
from gemfleet.train.batch_finder.decision import Decision
from gemfleet.train.batch_finder.finder import Found, Variant, find_batch
from gemfleet.train.batch_finder.probes.group import ProbeGroup
from gemfleet.train.batch_finder.probes.trial import Trial
from gemfleet.train.batch_finder.report import found_sentences, table, trial_facts, trial_line
from gemfleet.train.batch_finder.setting import (
    RankPlace,
    group_settings,
    probe_tasks,
    search_limits,
    settled,
    tokens_per_row,
    with_variant,
)
from gemfleet.train.batch_finder.typical import typical_steps
from gemfleet.train.batch_finder.variant_search import NoRankThereError, ProbeError
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.interfaces import BlockSource

from .probe_actors import HostFacts, RayProbe, probe_hosts

PROBES = Decision(probes=True, planned=None)
# kind, sentence, facts
Tell = Callable[[EventKind, str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class FindTask:
    """What the search needs. model_folders: for each Ray node id, the model's folder there; timeout_s: for all hosts

    gpu: the driver's name of the GPUs whose micro-batch is wanted, where ranks have several kinds; empty: of all
    """

    config: TrainConfig
    variants: Sequence[Variant]
    placement: Placement
    source: BlockSource
    model_folders: Mapping[str, str]
    timeout_s: float
    gpu: str = ""


def by_plan(config: TrainConfig, decision: Decision, tell: Tell) -> TrainConfig:
    """Tell the decision made without probes as an event. Returns the settings with its rows."""
    tell(EventKind.BATCH_PLANNED, decision.sentence(), {"rows": decision.rows, "reason": decision.sentence()})
    return config.with_micro(decision.rows)


def settle_micro(
    task: FindTask, cache: BatchCache | None, key: str, tell: Tell, decision: Decision = PROBES
) -> TrainConfig:
    """The settings with a number of rows in a pass: from the cache, else as decided.

    cache: None where the person wants a new search. Where probes fail that nobody asked for, the plan's number counts,
    and for a kind of GPUs on which no rank of the search is.
    """
    known = cache.get(key) if cache is not None else None
    if known is None and not decision.probes:
        return by_plan(task.config, decision, tell)
    if known is None and decision.reason:
        tell(EventKind.BATCH_NOTE, decision.reason, {})
    try:
        return _known_or_found(task, cache, known, key, tell, decision.budget_s)
    except ProbeError as error:
        asked = task.config.batch.micro == "probe" and not isinstance(error, NoRankThereError)
        if asked or decision.planned is None:
            raise
        return by_plan(task.config, decision.without_probes(f"probes failed: {error}"), tell)


def _known_or_found(
    task: FindTask, cache: BatchCache | None, known: CachedBatch | None, key: str, tell: Tell, budget_s: float
) -> TrainConfig:
    if known is not None:
        sentence = f"micro-batch {known.rows} ({known.variant}), as found before; the first step checks it"
        tell(EventKind.BATCH_CACHED, sentence, {"variant": known.variant, "rows": known.rows, "key": key})
        return settled(task.config, task.variants, known.variant, known.rows, known.evaluation_rows)
    started = time.monotonic()
    found = _search(task, tell, budget_s)
    for line in table(found):
        tell(EventKind.BATCH_TABLE, line, {})
    choice, (sentence, *others) = found.choice, found_sentences(found, task.config.evaluation.micro)
    for other in others:
        tell(EventKind.BATCH_NOTE, other, {})
    facts = {"variant": choice.variant, "rows": choice.rows, "trials": found.trials, "key": key}
    facts |= {"memory_trials": found.memory_trials, "seconds": time.monotonic() - started}
    tell(EventKind.BATCH_FOUND, sentence, facts)
    if cache is not None and not found.cut_short:
        chosen = CachedBatch(choice.variant, choice.rows, choice.speed, choice.peak_bytes, found.evaluation_rows)
        cache.put(key, chosen)
    return settled(task.config, task.variants, choice.variant, choice.rows, found.evaluation_rows)


def _search(task: FindTask, tell: Tell, budget_s: float) -> Found:
    config, world_size = task.config, task.placement.ranks

    def told(variant: str, trial: Trial) -> None:
        tell(EventKind.BATCH_TRIAL, trial_line(variant, trial), trial_facts(variant, trial))

    with probe_hosts(task.placement, task.timeout_s) as hosts:
        places = rank_places([facts for _, facts in hosts], task.model_folders)
        steps = typical_steps(task.source, config, world_size)

        @contextmanager
        def open_group(variant: Variant) -> Iterator[ProbeGroup]:
            tasks = probe_tasks(with_variant(config, variant.changes), places, steps)
            handles: list[RayProbe] = [handle for handle, _ in hosts]
            with ProbeGroup(handles, tasks, group_settings(config, task.gpu)) as group:
                yield group

        limits = search_limits(task.source, config, world_size, budget_s)
        # Of a kind, the tokens of one rank: how many ranks are on it is not known here.
        full_row = tokens_per_row(config, 1 if task.gpu else world_size)
        return find_batch(task.variants, open_group, limits, full_row, told)


def rank_places(hosts: Sequence[HostFacts], model_folders: Mapping[str, str]) -> list[RankPlace]:
    """The place of each rank, in the order of the hosts: its model folder and its number within its node.

    besides_bytes: what Ray itself takes in a rank's process, which a probe process lacks
    """
    on_node = Counter(host.node for host in hosts)
    seen: Counter[str] = Counter()
    places = []
    for host in hosts:
        places.append(
            RankPlace(model_folders[host.node], seen[host.node], on_node[host.node], besides_bytes=host.resident_bytes)
        )
        seen[host.node] += 1
    return places
