"""What the driver decides when a rank ran out of memory, from the events of a real registry."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.launcher.run.batch_search.probe_actors import HostFacts
from gemfleet.launcher.run.batch_search.search import rank_places
from gemfleet.launcher.run.training.controller import shrink
from gemfleet.launcher.run.training.failure_policy import Asked, Shrink, decide, failures_left
from gemfleet.train.batch_finder.cache import BatchCache, CachedBatch, batch_cache_file
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError

RUN = "run-1"
FAILED = RuntimeError("a rank failed")


class Session:
    """What `shrink` asks of a run: its registry, its configuration, and somebody to tell."""

    id = RUN

    def __init__(self, home: Path) -> None:
        self.registry = RunRegistry(home / "gemfleet.db")
        self.registry.create_run(RUN, "run", "{}")
        self.registry.transition(RUN, RunState.TRAINING)
        self.notes: list[str] = []
        self.config = SimpleNamespace(train=train(8))

    def tell(self, kind: EventKind, text: str, facts: dict[str, Any]) -> None:
        self.notes.append(text)
        self.registry.add_event(RUN, kind, text, facts)

    def out_of_memory(self, rank: int = 1) -> None:
        facts = {"rank": rank, "micro": 8}
        self.registry.add_event(RUN, EventKind.RANK_OUT_OF_MEMORY, "out of memory with 8 rows", facts)

    def attempt(self) -> None:
        self.registry.add_event(RUN, EventKind.ATTEMPT, "attempt begins")

    def wanted(self) -> Shrink | None:
        decision = decide(self.registry.launch_events(RUN), FAILED, Asked(3))
        return decision if isinstance(decision, Shrink) else None

    def lowered(self, settings: TrainConfig) -> TrainConfig:
        decision = self.wanted()
        assert decision is not None
        return shrink(self, settings, decision)  # type: ignore[arg-type]

    def failures_left(self, allowed: int) -> int:
        return failures_left(self.registry.launch_events(RUN), allowed)


@pytest.fixture
def run(gemfleet_home: Path) -> Session:
    return Session(gemfleet_home)


def train(micro: int, recomputation: str = "off") -> TrainConfig:
    values = {"model": "x", "data": {"train": "y"}, "batch": {"global": 64, "micro": micro}}
    return TrainConfig.model_validate({**values, "activation_checkpointing": recomputation})


def test_the_micro_batch_is_halved_and_the_recipe_stays(run: Session) -> None:
    assert run.wanted() is None
    run.out_of_memory(rank=0)
    run.out_of_memory(rank=1)  # two ranks at once are one reason to restart
    lowered = run.lowered(train(8))
    assert (lowered.batch.micro, lowered.batch.global_) == (4, 64)
    assert lowered.model_copy(update={"batch": train(8).batch}) == train(8)
    assert run.wanted() is None
    (event,) = [event for event in run.registry.events(RUN) if event["kind"] == "out_of_memory"]
    assert (event["data"]["from"], event["data"]["to"], event["data"]["global"]) == (8, 4, 64)
    assert run.registry.get_run(RUN).state == RunState.RESTARTING
    run.out_of_memory()
    assert run.lowered(lowered).batch.micro == 2
    assert len(run.notes) == 2


def test_the_rows_of_every_kind_of_gpus_are_halved(run: Session) -> None:
    run.out_of_memory()
    settled = train(1)
    settled = settled.model_copy(
        update={"batch": settled.batch.model_copy(update={"micro_by_gpu": {"L4": 1, "H100": 8}})}
    )
    lowered = run.lowered(settled)
    assert (lowered.batch.micro, lowered.batch.micro_by_gpu) == (1, {"L4": 1, "H100": 4})
    assert "from 8 to 4 rows" in run.notes[-1]


def test_the_passes_of_an_evaluation_are_halved_too(run: Session) -> None:
    run.out_of_memory()
    lowered = run.lowered(train(1).with_micro(1, evaluation_rows=16))
    assert (lowered.batch.micro, lowered.evaluation.micro) == (1, 8)


def test_at_one_row_the_error_says_what_to_change(run: Session) -> None:
    run.out_of_memory()
    with pytest.raises(UserError, match=r"rank 1 ran out of memory with one row.*train\.data\.max_length"):
        run.lowered(train(1))


def test_at_one_row_more_is_recomputed_where_that_was_left_open(run: Session) -> None:
    run.config.train, config = train(1, "auto"), train(1)
    for mode in ("selective", "full"):
        run.out_of_memory()
        config = run.lowered(config)
        assert (config.activation_checkpointing, config.batch.micro) == (mode, 1)
        assert run.wanted() is None
        assert f"to {mode}" in run.notes[-1]
    assert config.model_copy(update={"activation_checkpointing": "off"}) == train(1)
    run.out_of_memory()
    with pytest.raises(UserError, match="one row"):
        run.lowered(config)


def test_before_more_is_recomputed_the_loss_goes_in_smaller_chunks_unless_the_person_chose_them(run: Session) -> None:
    run.config.train, settled = train(1, "auto"), train(1).model_copy(update={"loss_chunk_rows": 2048})
    run.out_of_memory()
    lowered = run.lowered(settled)
    assert (lowered.loss_chunk_rows, lowered.activation_checkpointing) == (256, "off")
    assert run.notes[-1].endswith("the loss goes in chunks of 256 rows instead of 2048")
    run.out_of_memory()
    assert run.lowered(lowered).activation_checkpointing == "selective"
    run.config.train = run.config.train.model_copy(update={"loss_chunk_rows": 2048})
    run.out_of_memory()
    assert run.lowered(settled).loss_chunk_rows == 2048


def test_such_a_restart_uses_none_of_the_allowed_failures(run: Session) -> None:
    assert run.failures_left(1) == 1
    run.attempt()
    run.out_of_memory()
    run.lowered(train(8))
    assert run.failures_left(1) == 1
    run.attempt()
    run.attempt()  # after a rank was lost
    run.out_of_memory()
    run.lowered(train(4))
    assert run.failures_left(1) == 0


def test_a_search_that_did_not_hold_is_forgotten(run: Session) -> None:
    cache = BatchCache(batch_cache_file())
    cache.put("mine", CachedBatch("ddp", 8, 1.0, 1))
    cache.put("other", CachedBatch("ddp", 8, 1.0, 1))
    run.registry.add_event(RUN, EventKind.BATCH_FOUND, "found", {"key": "mine"})
    run.out_of_memory()
    run.lowered(train(8))
    assert list(cache.entries()) == ["other"]


def test_ranks_are_numbered_within_their_nodes() -> None:
    hosts = [HostFacts("a", "10.0.0.1", 5), HostFacts("a", "10.0.0.1", 6), HostFacts("b", "10.0.0.2", 7)]
    places = rank_places(hosts, {"a": "/a", "b": "/b"})
    assert [(p.model_folder, p.local_rank, p.ranks_on_node) for p in places] == [
        ("/a", 0, 2),
        ("/a", 1, 2),
        ("/b", 0, 1),
    ]
    assert [p.besides_bytes for p in places] == [5, 6, 7]
