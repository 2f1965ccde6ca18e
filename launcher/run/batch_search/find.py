"""The phase of a run that finds the rows of a pass: for all of its ranks, or for each kind of their GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.placement import Placement
from gemfleet.launcher.run.session import RunSession
from gemfleet.train.batch_finder.cache import BatchCache, batch_cache_file
from gemfleet.train.batch_finder.decision import decide, decide_by_kind
from gemfleet.train.batch_finder.variants import variants_of
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.interfaces import BlockSource
from gemfleet.train.model.resolve import resolve_model_folder
from gemfleet.train.planning.auto_strategy import Settled

from .cache_key import batch_key
from .kinds import settle_kinds
from .search import FindTask, by_plan, settle_micro


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
    on_gpu, at_most = placement.gpus_per_rank > 0, rows_that_fitted(run)
    decision = decide(train, plan, source, placement.ranks, done["step"], on_gpu).at_most(at_most)
    if not on_gpu and not decision.probes:
        return by_plan(train, decision, tell)
    run.enter(RunState.FINDING_BATCH, "finding batch")
    several = plan is not None and len(plan.kinds) > 1
    options = plan.options if plan and not several else ()  # ranks of all kinds train in one way, the plan's
    variants = variants_of(train if plan else left_to_probes(run, train), options)
    task = FindTask(train, variants, placement, source, model_folders, run.config.cluster.wait_for_resources_s)
    key_of = partial(batch_key, train, variants, placement, model_folders, resolve_model_folder(train.model))
    cache = BatchCache(batch_cache_file()) if use_cache else None
    if plan is not None and several:
        decisions = decide_by_kind(train, plan, source, placement.ranks, done["step"])
        return settle_kinds(task, cache, key_of, tell, {gpu: one.at_most(at_most) for gpu, one in decisions.items()})
    return settle_micro(task, cache, key_of(), tell, decision)


def left_to_probes(run: RunSession, train: TrainConfig) -> TrainConfig:
    """The settings where no plan could be made: as asked, so that probes choose what is recomputed."""
    return train.model_copy(update={"activation_checkpointing": run.config.train.activation_checkpointing})


def rows_that_fitted(run: RunSession) -> int | None:
    """The rows of a pass to which an earlier launch came down when memory ran out. None where it did not."""
    return min(
        (e["data"]["to"] for e in run.registry.events(run.id) if e["kind"] == EventKind.OUT_OF_MEMORY), default=None
    )
