"""Turns `micro: auto` into a number: by the plan, by probes where the ranks will run, or by an earlier search."""

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
from gemfleet.train.batch_finder.decision import Decision, decide, rows_by_kind
from gemfleet.train.batch_finder.finder import Found, Variant, find_batch
from gemfleet.train.batch_finder.probes.group import ProbeGroup
from gemfleet.train.batch_finder.probes.trial import Trial
from gemfleet.train.batch_finder.report import found_sentences, table, trial_facts, trial_line
from gemfleet.train.batch_finder.setting import (
    RankPlace,
    group_settings,
    largest_rows,
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
    """What the search needs. model_folders: for each Ray node id, the model's folder there; timeout_s: for all hosts"""

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
    """The phase of a run that finds the rows of a pass. Returns the settings with that number.

    plan: the plan's choice for these ranks; use_cache: whether an earlier search counts
    Raises StoppedBeforeFit when somebody stops the run meanwhile.
    """
    if isinstance(train.batch.micro, int):
        return train
    if train.max_steps == 0:
        return train.with_micro(1)

    def tell(kind: EventKind, sentence: str, facts: Mapping[str, Any]) -> None:
        run.tell(kind, sentence, dict(facts))
        run.heed_stop("looked for a micro-batch")  # every trial tells something, so this runs after each

    done = run.registry.latest_metrics(run.id, "step") or {"step": 0}
    on_gpu = placement.gpus_per_rank > 0
    decision = decide(train, plan, source, placement.ranks, done["step"], on_gpu).at_most(rows_that_fitted(run))
    if plan and plan.kinds and train.batch.micro == "auto":
        rows = rows_by_kind(plan, largest_rows(source, train, placement.ranks), len(source.pictures) > 0)
        return by_kind(train, rows, rows_that_fitted(run), tell)
    if not on_gpu and not decision.probes:
        return by_plan(train, decision, tell)
    run.enter(RunState.FINDING_BATCH, "finding batch")
    variants = variants_of(train if plan else left_to_probes(run, train), plan.options if plan else ())
    key = batch_key(train, variants, placement, model_folders, resolve_model_folder(train.model))
    task = FindTask(train, variants, placement, source, model_folders, run.config.cluster.wait_for_resources_s)
    return settle_micro(task, BatchCache(batch_cache_file()) if use_cache else None, key, tell, decision)


def left_to_probes(run: RunSession, train: TrainConfig) -> TrainConfig:
    """The settings where no plan could be made: as asked, so that probes choose what is recomputed."""
    return train.model_copy(update={"activation_checkpointing": run.config.train.activation_checkpointing})


def rows_that_fitted(run: RunSession) -> int | None:
    """The rows of a pass to which an earlier launch came down when memory ran out. None where it did not."""
    return min(
        (e["data"]["to"] for e in run.registry.events(run.id) if e["kind"] == EventKind.OUT_OF_MEMORY), default=None
    )


def by_plan(config: TrainConfig, decision: Decision, tell: Tell) -> TrainConfig:
    """Tell the decision made without probes as an event. Returns the settings with its rows."""
    tell(EventKind.BATCH_PLANNED, decision.sentence(), {"rows": decision.rows, "reason": decision.sentence()})
    return config.with_micro(decision.rows)


def by_kind(config: TrainConfig, rows: Mapping[str, int], at_most: int | None, tell: Tell) -> TrainConfig:
    """The settings with the plan's rows for each kind of GPUs, told as an event. at_most: see `rows_that_fitted`"""
    fitting = {kind: min(number, at_most or number) for kind, number in rows.items()}
    sentence = "micro-batch by the plan: " + ", ".join(f"{number} on {kind}" for kind, number in fitting.items())
    least = min(fitting.values())
    tell(EventKind.BATCH_PLANNED, sentence, {"rows": least, "rows_by_gpu": fitting, "reason": sentence})
    batch = config.batch.model_copy(update={"micro": least, "micro_by_gpu": fitting})
    return config.model_copy(update={"batch": batch})


def settle_micro(
    task: FindTask, cache: BatchCache | None, key: str, tell: Tell, decision: Decision = PROBES
) -> TrainConfig:
    """The settings with a number of rows in a pass: from the cache, else as decided.

    cache: None where the person wants a new search. Where probes fail that nobody asked for, the plan's number counts.
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
            with ProbeGroup(handles, tasks, group_settings(config)) as group:
                yield group

        limits = search_limits(task.source, config, world_size, budget_s)
        return find_batch(task.variants, open_group, limits, tokens_per_row(config, world_size), told)


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
