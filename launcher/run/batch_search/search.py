"""Turns `micro: auto` into a number: by the plan, by probes on the places the run will have, or by what those found
before."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.placement import Placement
from gemfleet.launcher.run.session import RunSession
from gemfleet.train.batch_finder.cache import BatchCache, CachedBatch, batch_cache_file
from gemfleet.train.batch_finder.decision import Decision, decide
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
from gemfleet.train.batch_finder.variant_search import ProbeError
from gemfleet.train.batch_finder.variants import variants_of
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.interfaces import BlockSource
from gemfleet.train.model.resolve import resolve_model_folder
from gemfleet.train.planning.auto_strategy import Settled

from .cache_key import batch_key
from .probe_actors import HostFacts, RayProbe, probe_hosts

PROBES = Decision(probes=True, planned=None)
# kind, sentence, facts
Tell = Callable[[EventKind, str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class FindTask:
    """What the search needs of a run. model_folders: for each Ray node id, the folder there that holds the model."""

    config: TrainConfig
    variants: Sequence[Variant]
    placement: Placement
    source: BlockSource
    model_folders: Mapping[str, str]
    timeout_s: float


def find_micro(
    run: RunSession,
    train: TrainConfig,
    placement: Placement,
    source: BlockSource,
    model_folders: Mapping[str, str],
    plan: Settled | None,
    use_cache: bool,
) -> TrainConfig:
    """The phase of a run: the settings with a number of rows in a pass. plan: what it chose for these places.

    Raises StoppedBeforeFit when somebody asks the run to stop meanwhile.
    """
    if isinstance(train.batch.micro, int):
        return train
    if train.max_steps == 0:
        return train.with_micro(1)

    def tell(kind: EventKind, sentence: str, facts: Mapping[str, Any]) -> None:
        run.tell(kind, sentence, dict(facts))
        run.heed_stop("looked for a micro-batch")  # after each trial at the latest

    done = run.registry.latest_metrics(run.id, "step") or {"step": 0}
    on_gpu = placement.gpus_per_worker > 0
    decision = decide(train, plan, source, placement.workers, done["step"], on_gpu).at_most(rows_that_fitted(run))
    if not on_gpu and not decision.probes:
        return by_plan(train, decision, tell)
    run.enter(RunState.FINDING_BATCH, "finding batch")
    variants = variants_of(train if plan else left_to_probes(run, train), plan.options if plan else ())
    key = batch_key(train, variants, placement, model_folders, resolve_model_folder(train.model))
    task = FindTask(train, variants, placement, source, model_folders, run.config.cluster.wait_for_resources_s)
    return settle_micro(task, BatchCache(batch_cache_file()) if use_cache else None, key, tell, decision)


def left_to_probes(run: RunSession, train: TrainConfig) -> TrainConfig:
    """The settings where no plan could be made: probes choose whether anything is recomputed."""
    return train.model_copy(update={"activation_checkpointing": run.config.train.activation_checkpointing})


def rows_that_fitted(run: RunSession) -> int | None:
    """What an earlier launch of this run came down to when memory ran out; None where it did not."""
    return min(
        (e["data"]["to"] for e in run.registry.events(run.id) if e["kind"] == EventKind.OUT_OF_MEMORY), default=None
    )


def by_plan(config: TrainConfig, decision: Decision, tell: Tell) -> TrainConfig:
    """What was chosen without probes, which is an event."""
    tell(EventKind.BATCH_PLANNED, decision.sentence(), {"rows": decision.rows, "reason": decision.sentence()})
    return config.with_micro(decision.rows)


def settle_micro(
    task: FindTask, cache: BatchCache | None, key: str, tell: Tell, decision: Decision = PROBES
) -> TrainConfig:
    """The configuration with a number of rows in a pass: what was found before, else as decided.

    `cache` is None where the person wants a new search. Where probes fail that nobody has asked for, the plan counts.
    """
    known = cache.get(key) if cache is not None else None
    if known is None and not decision.probes:
        return by_plan(task.config, decision, tell)
    if known is None and decision.reason:
        tell(EventKind.BATCH_NOTE, decision.reason, {})
    try:
        return _known_or_found(task, cache, known, key, tell, decision.budget_s)
    except ProbeError as error:
        if task.config.batch.micro == "probe" or decision.planned is None:
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
    config, world_size = task.config, task.placement.workers

    def told(variant: str, trial: Trial) -> None:
        tell(EventKind.BATCH_TRIAL, trial_line(variant, trial), trial_facts(variant, trial))

    with probe_hosts(task.placement, task.timeout_s) as hosts:
        places = rank_places([facts for _, facts in hosts], task.model_folders)
        steps = typical_steps(task.source, config, world_size)

        @contextmanager
        def open_group(variant: Variant) -> Iterator[ProbeGroup]:
            tasks = probe_tasks(with_variant(config, variant.changes), places, steps)
            handles: list[RayProbe] = [handle for handle, _ in hosts]
            with ProbeGroup(handles, tasks, group_settings(config)) as group:
                yield group

        limits = search_limits(task.source, config, world_size, budget_s)
        return find_batch(task.variants, open_group, limits, tokens_per_row(config, world_size), told)


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
