"""What the head decides when a rank ran out of memory, from the events of a real registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.launcher.run.batch_search.probe_actors import HostFacts
from gemfleet.launcher.run.batch_search.search import rank_places
from gemfleet.launcher.run.training.memory_restart import RANK_EVENT, EndsForMemory, MemoryRestart, RanksNeedMemoryError
from gemfleet.train.batch_finder.cache import BatchCache, CachedBatch, batch_cache_file
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError

RUN = "run-1"


@pytest.fixture
def registry(gemfleet_home: Path) -> RunRegistry:
    registry = RunRegistry(gemfleet_home / "gemfleet.db")
    registry.create_run(RUN, "run", "{}")
    registry.transition(RUN, RunState.TRAINING)
    return registry


def train(micro: int) -> TrainConfig:
    values = {"model": "x", "data": {"train": "y"}, "batch": {"global": 64, "micro": micro}}
    return TrainConfig.model_validate({**values, "activation_checkpointing": "off"})


def out_of_memory(registry: RunRegistry, rank: int = 1) -> None:
    registry.add_event(RUN, RANK_EVENT, "out of memory with 8 rows", {"rank": rank, "micro": 8})


def attempt(registry: RunRegistry) -> None:
    registry.add_event(RUN, "attempt", "attempt begins")


def test_the_micro_batch_is_halved_and_the_recipe_stays(registry: RunRegistry) -> None:
    restart, notes = MemoryRestart(registry, RUN), list[str]()
    assert not restart.wanted()
    out_of_memory(registry, rank=0)
    out_of_memory(registry, rank=1)  # two ranks at once are one reason to restart
    assert restart.wanted()
    lowered = restart.lowered(train(8), notes.append)
    assert (lowered.batch.micro, lowered.batch.global_) == (4, 64)
    assert lowered.model_copy(update={"batch": train(8).batch}) == train(8)
    assert not restart.wanted()
    (event,) = [event for event in registry.events(RUN) if event["kind"] == "out_of_memory"]
    assert (event["data"]["from"], event["data"]["to"], event["data"]["global"]) == (8, 4, 64)
    assert registry.get_run(RUN).state == RunState.RESTARTING
    out_of_memory(registry)
    assert restart.lowered(lowered, notes.append).batch.micro == 2
    assert len(notes) == 2


def test_the_passes_of_an_evaluation_are_halved_too(registry: RunRegistry) -> None:
    restart = MemoryRestart(registry, RUN)
    out_of_memory(registry)
    lowered = restart.lowered(train(1).with_micro(1, evaluation_rows=16), print)
    assert (lowered.batch.micro, lowered.evaluation.micro) == (1, 8)


def test_at_one_row_the_error_says_what_to_change(registry: RunRegistry) -> None:
    out_of_memory(registry)
    with pytest.raises(UserError, match=r"rank 1 ran out of memory with one row.*train\.data\.max_length"):
        MemoryRestart(registry, RUN).lowered(train(1), print)


def test_at_one_row_more_is_recomputed_where_that_was_left_open(registry: RunRegistry) -> None:
    restart, notes, config = MemoryRestart(registry, RUN), list[str](), train(1)
    for mode in ("selective", "full"):
        out_of_memory(registry)
        config = restart.lowered(config, notes.append, recomputation_open=True)
        assert (config.activation_checkpointing, config.batch.micro) == (mode, 1)
        assert not restart.wanted()
        assert f"to {mode}" in notes[-1]
    assert config.model_copy(update={"activation_checkpointing": "off"}) == train(1)
    out_of_memory(registry)
    with pytest.raises(UserError, match="one row"):
        restart.lowered(config, notes.append, recomputation_open=True)


def test_such_a_restart_uses_none_of_the_allowed_failures(registry: RunRegistry) -> None:
    restart = MemoryRestart(registry, RUN)
    assert restart.failures_left(1) == 1
    attempt(registry)
    out_of_memory(registry)
    restart.lowered(train(8), print)
    assert restart.failures_left(1) == 1
    attempt(registry)
    attempt(registry)  # after a rank was lost
    out_of_memory(registry)
    restart.lowered(train(4), print)
    assert restart.failures_left(1) == 0


def test_a_search_that_did_not_hold_is_forgotten(registry: RunRegistry) -> None:
    cache = BatchCache(batch_cache_file())
    cache.put("mine", CachedBatch("ddp", 8, 1.0, 1))
    cache.put("other", CachedBatch("ddp", 8, 1.0, 1))
    registry.add_event(RUN, "batch_found", "found", {"key": "mine"})
    out_of_memory(registry)
    MemoryRestart(registry, RUN).lowered(train(8), print)
    assert list(cache.entries()) == ["other"]


class FakeRecorder:
    def __init__(self, registry: RunRegistry | None) -> None:
        self.registry = registry

    def call(self, method: str, kinds: tuple[str, ...]) -> dict[str, Any] | None:
        assert method == "newest_event"
        if self.registry is None:
            raise RuntimeError("the recorder is gone")
        return next((event for event in reversed(self.registry.events(RUN)) if event["kind"] in kinds), None)


def test_ray_is_ended_only_for_want_of_memory(registry: RunRegistry) -> None:
    ends = EndsForMemory(FakeRecorder(registry))  # type: ignore[arg-type]
    ends.after_exception(None, {})
    out_of_memory(registry)
    with pytest.raises(RanksNeedMemoryError):
        ends.after_exception(None, {})
    MemoryRestart(registry, RUN).lowered(train(8), print)
    ends.after_exception(None, {})  # another failure, later
    EndsForMemory(FakeRecorder(None)).after_exception(None, {})  # type: ignore[arg-type]


def test_ranks_are_numbered_within_their_nodes() -> None:
    hosts = [HostFacts("a", "10.0.0.1", 5), HostFacts("a", "10.0.0.1", 6), HostFacts("b", "10.0.0.2", 7)]
    places = rank_places(hosts, {"a": "/a", "b": "/b"})
    assert [(p.model_folder, p.local_rank, p.ranks_on_node) for p in places] == [
        ("/a", 0, 2),
        ("/a", 1, 2),
        ("/b", 0, 1),
    ]
    assert [p.besides_bytes for p in places] == [5, 6, 7]
