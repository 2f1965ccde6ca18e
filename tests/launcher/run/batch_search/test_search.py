"""The search as a run has it, over probes that answer at once: what is told, what is kept, and what comes back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.registry_reader import RegistryReader
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.launcher.api.metrics import RunCollector
from gemfleet.launcher.api.totals import RunTotals
from gemfleet.launcher.cli import app
from gemfleet.launcher.placement import Placement
from gemfleet.launcher.run.batch_search import find, search
from gemfleet.launcher.run.batch_search.find import find_micro
from gemfleet.launcher.run.batch_search.kinds import settle_kinds
from gemfleet.launcher.run.batch_search.probe_actors import HostFacts
from gemfleet.launcher.run.batch_search.search import PROBES, FindTask, settle_micro
from gemfleet.train.batch_finder.cache import BatchCache, CachedBatch
from gemfleet.train.batch_finder.decision import Decision, decide
from gemfleet.train.batch_finder.probes.child import ProbeTask
from gemfleet.train.batch_finder.probes.probe import worst_rows
from gemfleet.train.batch_finder.probes.process import Answer
from gemfleet.train.batch_finder.variants import variants_of
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.interfaces import Ints, PackedRows, Pixels, Shares, StepRows, no_pictures
from gemfleet.train.planning import SIZES
from gemfleet.train.planning.auto_strategy import RankDevices, Settled, settle_strategy
from gemfleet.train.planning.rows import PlannedRows
from typer.testing import CliRunner

MIB = 2**20
NODES = {"node-a": "10.0.0.1", "node-b": "10.0.0.2"}


class InstantProbe:
    """A `ProbeHandle` whose rank takes 100 MiB and 10 a row, or 7 where it recomputes; an evaluation 5 a row.

    sent: the rows that it was asked for
    """

    def __init__(self, node: str, limit_mib: int, gpu: str = "cpu") -> None:
        self.node, self.limit, self.gpu = node, limit_mib * MIB, gpu
        self.answers: list[Answer] = []
        self.sent: list[int] = []
        self.starts = 0

    def free_address(self) -> str:
        return f"{self.node}:1"

    def start(self, task: ProbeTask) -> None:
        self.starts += 1
        self.a_row = 10 if task.config["activation_checkpointing"] == "off" else 7
        self.slow = 1.0 if self.a_row == 10 else 1.02
        self.answers = [{"kind": "ready", "limit_bytes": self.limit, "device": self.gpu}]

    def send(self, rows: int, evaluation: bool) -> None:
        self.sent.append(rows)
        peak = (100 + (5 if evaluation else self.a_row) * rows) * MIB
        seconds = self.slow * (0.1 + 0.05 * rows)
        self.answers.append({"kind": "measured", "rows": rows, "peak_bytes": peak, "seconds": seconds})

    def poll(self) -> list[Answer]:
        arrived, self.answers = self.answers, []
        return arrived

    def kill(self) -> None:
        self.answers = []


class Source:
    """One step of so many rows on every rank."""

    steps_per_epoch, eval_sets, pictures = 1, ("eval",), no_pictures()

    def __init__(self, rows: int) -> None:
        self._rows = worst_rows(rows, 8, 100)

    def step(self, epoch: int, step_in_epoch: int, rank: int, shares: Shares | None = None) -> StepRows:
        return StepRows(self._rows, 1, 1, 1)

    def eval_rows(self, rank: int, name: str) -> PackedRows:
        return self._rows

    def pixels(self, ids: Ints) -> Pixels:
        raise KeyError("no pictures")


class Search:
    """A task, its probes, and what was told: kind, sentence, facts."""

    def __init__(self, patch: pytest.MonkeyPatch, limits_mib: tuple[int, int], **train: Any) -> None:
        values = {"model": "x", "data": {"train": "y"}, "batch": {"global": 64, "micro": "probe", "memory_margin": 0.0}}
        values["strategy"] = "ddp"
        self.config = TrainConfig.model_validate(values | train)
        folders = dict.fromkeys(NODES, "/model")
        placement = Placement(2, 1.0, 0, "PACK")
        self.task = FindTask(self.config, variants_of(self.config), placement, Source(64), folders, 1.0)
        self.probes = [InstantProbe(address, mib) for address, mib in zip(NODES.values(), limits_mib, strict=True)]
        self.told: list[tuple[str, str, Mapping[str, Any]]] = []

        @contextmanager
        def hosts(*_: Any) -> Iterator[list[tuple[InstantProbe, HostFacts]]]:
            yield [(probe, HostFacts(node, probe.node, 0)) for probe, node in zip(self.probes, NODES, strict=True)]

        patch.setattr(search, "probe_hosts", hosts)
        patch.setattr("gemfleet.train.batch_finder.probes.group.POLL_SECONDS", 0.0)

    def run(self, cache: BatchCache | None = None) -> TrainConfig:
        return settle_micro(self.task, cache, "key", lambda *event: self.told.append(event))

    def kinds(self) -> list[str]:
        return [kind for kind, *_ in self.told]


def test_every_trial_the_table_and_the_choice_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch, (10_000, 10_000))
    settled = search.run()
    assert (settled.batch.micro, settled.batch.global_) == (64, 64)
    assert settled.evaluation.micro is None
    chosen = search.config.model_copy(update={"activation_checkpointing": "off"})
    assert settled.with_micro(1) == chosen.with_micro(1)  # nothing else of the recipe changed
    trials = [facts for kind, _, facts in search.told if kind == "batch_trial"]
    assert [facts["rows"] for facts in trials if facts["evaluation"]] == [64]
    assert {facts["variant"] for facts in trials} == {"ddp"}  # memory was no limit, so nothing was computed again
    ((sentence, facts),) = [(sentence, facts) for kind, sentence, facts in search.told if kind == "batch_found"]
    assert sentence == f"micro-batch 64 (ddp) after {len(trials)} trials"
    assert (facts["rows"], facts["trials"], facts["key"]) == (64, len(trials), "key")
    assert facts["memory_trials"]["ddp"] <= 6
    assert [line for kind, line, _ in search.told if kind == "batch_table" and "<- chosen" in line]


def test_the_node_with_least_memory_decides_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch, (10_000, 160))
    settled = search.run()
    assert (settled.batch.micro, settled.activation_checkpointing) == (8, "selective")  # 6 rows without, 8 with
    (note,) = [sentence for kind, sentence, _ in search.told if kind == "batch_note"]
    assert "rank 1 on 10.0.0.2 has the least" in note
    assert {facts["node"] for kind, _, facts in search.told if kind == "batch_trial"} == {"10.0.0.2"}
    assert [probe.starts for probe in search.probes] == [2, 2]  # the model is loaded once for each variant


def test_an_evaluation_that_does_not_fit_goes_in_smaller_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch, (160, 160), evaluation={"micro": 40}, activation_checkpointing="off")
    settled = search.run()
    assert (settled.batch.micro, settled.evaluation.micro) == (6, 10)
    assert "an evaluation of 40 rows does not fit: it goes in passes of 10" in [text for _, text, _ in search.told]


def test_what_was_found_is_taken_without_a_probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = BatchCache(tmp_path / "batch.json")
    evaluation = {"micro": 40}
    first = Search(monkeypatch, (10_000, 160), evaluation=evaluation).run(cache)
    again = Search(monkeypatch, (10_000, 160), evaluation=evaluation)
    assert again.run(cache) == first
    assert again.kinds() == ["batch_cached"]
    assert [probe.starts for probe in again.probes] == [0, 0]
    anew = Search(monkeypatch, (10_000, 160), evaluation=evaluation)
    assert anew.run(None) == first
    assert "batch_trial" in anew.kinds()


KINDS = ("NVIDIA L4", "NVIDIA H200")


def search_on_two_kinds(patch: pytest.MonkeyPatch, **train: Any) -> Search:
    """Room for 6 rows on the first kind and for 90 on the second."""
    search = Search(patch, (160, 1000), activation_checkpointing="off", **train)
    for probe, gpu in zip(search.probes, KINDS, strict=True):
        probe.gpu = gpu
    return search


def by_kinds(search: Search, cache: BatchCache | None, decisions: Mapping[str, Decision]) -> TrainConfig:
    return settle_kinds(
        search.task, cache, lambda gpu: f"key of {gpu}", lambda *event: search.told.append(event), decisions
    )


def test_each_kind_of_gpus_has_its_own_rows_while_the_others_hold_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    search, cache = search_on_two_kinds(monkeypatch), BatchCache(tmp_path / "batch.json")
    found = by_kinds(search, cache, dict.fromkeys(KINDS, PROBES))
    assert found.batch.micro_by_gpu == {"NVIDIA L4": 6, "NVIDIA H200": 64}
    assert (found.batch.micro, found.evaluation.micro) == (6, None)
    slow, fast = search.probes
    assert all(1 in rows for rows in zip(slow.sent, fast.sent, strict=True))
    assert (max(slow.sent) >= 6, max(fast.sent)) == (True, 64)
    assert {facts["gpu"] for kind, _, facts in search.told if kind == "batch_trial"} == set(KINDS)
    assert search.told[-1][1] == "micro-batch by kind: 6 on NVIDIA L4, 64 on NVIDIA H200"
    assert {key: entry.rows for key, entry in cache.entries().items()} == {
        "key of NVIDIA L4": 6,
        "key of NVIDIA H200": 64,
    }
    cache.remove("key of NVIDIA L4")  # as after memory ran out
    again = search_on_two_kinds(monkeypatch)
    assert by_kinds(again, cache, dict.fromkeys(KINDS, PROBES)) == found
    assert {facts["gpu"] for kind, _, facts in again.told if kind == "batch_trial"} == {"NVIDIA L4"}


def test_an_evaluation_fits_every_kind_and_a_kind_without_a_rank_takes_the_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where probes are asked for: there is nothing to probe."""
    search = search_on_two_kinds(monkeypatch, evaluation={"micro": 40})
    absent = Decision(probes=True, planned=PlannedRows(3, "4 rows would take too much"))
    found = by_kinds(search, None, {**dict.fromkeys(KINDS, PROBES), "Tesla T4": absent})
    assert found.batch.micro_by_gpu == {"NVIDIA L4": 6, "NVIDIA H200": 64, "Tesla T4": 3}
    assert found.evaluation.micro == 10
    assert [sentence for _, sentence, _ in search.told if sentence.startswith("Tesla T4: micro-batch 3 by the plan")]


def test_a_plan_with_several_kinds_is_searched_by_kind(monkeypatch: pytest.MonkeyPatch, gemfleet_home: Path) -> None:
    """A short run takes the plan's rows for each; a fast kind may get twice the mean share, and so twice the rows."""
    search = search_on_two_kinds(monkeypatch)
    registry = RunRegistry(gemfleet_home / "gemfleet.db")
    registry.create_run("run-1", "run", "{}", os.getpid())
    for name, answer in (("batch_key", "key"), ("resolve_model_folder", Path("/model"))):
        monkeypatch.setattr(find, name, lambda *_, answer=answer: answer)
    slow, fast = (RankDevices(2, gib * 2**30, "cuda", "bf16", gpu) for gib, gpu in ((6, KINDS[0]), (140, KINDS[1])))
    plan = replace(settled_by(slow, search), kinds=(slow, fast))
    run = session(registry, plan.config, print)
    run.enter = lambda state, _: registry.transition("run-1", state)
    placement = Placement(2, 1.0, 1, "PACK", mixed=True)
    folders = dict.fromkeys(NODES, "/model")
    planned = find_micro(run, plan.config, placement, Source(4), folders, plan, use_cache=True)  # type: ignore[arg-type]
    assert planned.batch.micro == planned.batch.micro_by_gpu[KINDS[0]] < planned.batch.micro_by_gpu[KINDS[1]] == 8
    assert search.probes[0].sent == []
    asked = plan.config.model_copy(update={"batch": plan.config.batch.model_copy(update={"micro": "probe"})})
    probed = find_micro(run, asked, placement, Source(64), folders, plan, use_cache=False)  # type: ignore[arg-type]
    assert probed.batch.micro_by_gpu == {KINDS[0]: 6, KINDS[1]: 64}


def test_at_no_room_for_one_row_the_error_names_rank_node_and_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch, (10_000, 90))
    with pytest.raises(UserError, match=r"rank 1 on 10\.0\.0\.2 needs .*max_length.*fsdp2.*cpu_offload.*int4"):
        search.run()


def session(registry: RunRegistry, train: TrainConfig, note: Callable[[str], None]) -> SimpleNamespace:
    """What the search asks of a run that nobody stops."""

    def tell(kind: EventKind, sentence: str, facts: Mapping[str, Any]) -> None:
        note(sentence)
        registry.add_event("run-1", kind, sentence, facts)

    config = SimpleNamespace(train=train, cluster=SimpleNamespace(wait_for_resources_s=1.0))
    return SimpleNamespace(id="run-1", registry=registry, tell=tell, heed_stop=lambda doing: None, config=config)


def test_trials_are_on_the_screen_in_the_registry_and_counted(
    monkeypatch: pytest.MonkeyPatch, gemfleet_home: Path
) -> None:
    asked = Search(monkeypatch, (10_000, 160))
    registry, lines = RunRegistry(gemfleet_home / "gemfleet.db"), list[str]()
    registry.create_run("run-1", "run", "{}", os.getpid())
    for name, answer in (("batch_key", "key"), ("resolve_model_folder", Path("/model"))):
        monkeypatch.setattr(find, name, lambda *_, answer=answer: answer)
    run = session(registry, asked.config, lines.append)
    run.enter = lambda state, _: registry.transition("run-1", state)
    folders = dict.fromkeys(NODES, "/model")
    find_micro(run, asked.config, asked.task.placement, Source(64), folders, None, use_cache=True)  # type: ignore[arg-type]
    assert registry.get_run("run-1").state == RunState.FINDING_BATCH
    trials = [event["message"] for event in registry.events("run-1") if event["kind"] == "batch_trial"]
    shown = CliRunner().invoke(app, ["show", "run-1"], catch_exceptions=False).output
    assert [message for message in trials if message not in lines or message not in shown] == []
    reader = RegistryReader(gemfleet_home / "gemfleet.db")
    families = RunCollector(reader, RunTotals(reader)).collect()
    counter = next(family for family in families if family.name == "gemfleet_batch_trials")
    assert [sample.value for sample in counter.samples] == [len(trials)]
    listed = CliRunner().invoke(app, ["batch-cache", "list", "--json"], catch_exceptions=False).output
    assert [(found["variant"], found["rows"]) for found in json.loads(listed)] == [("ddp, selective", 8)]


H200 = RankDevices(2, 140 * 2**30, "cuda", "bf16", "NVIDIA H200")


def settled_by(devices: RankDevices, search: Search) -> Settled:
    asked = search.config.model_copy(update={"batch": search.config.batch.model_copy(update={"micro": "auto"})})
    return settle_strategy(asked, SIZES["1b"], devices)


@pytest.mark.parametrize("known", [False, True])
def test_a_short_run_on_gpus_takes_what_is_known_or_the_plan(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, known: bool
) -> None:
    search, cache = Search(monkeypatch, (10_000, 10_000)), BatchCache(tmp_path / "batch.json")
    if known:
        cache.put("key", CachedBatch("ddp", 3, 1.0, 1))
    plan = settled_by(H200, search)
    decision = decide(plan.config, plan, Source(64), 2)
    found = settle_micro(search.task, cache, "key", lambda *event: search.told.append(event), decision)
    assert found.batch.micro == (3 if known else 32)
    assert search.kinds() == ["batch_cached" if known else "batch_planned"]
    assert [probe.starts for probe in search.probes] == [0, 0]


def test_a_search_that_was_cut_short_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    search, cache = Search(monkeypatch, (10_000, 160)), BatchCache(tmp_path / "batch.json")
    decision = Decision(probes=True, planned=None, budget_s=0.0, reason="of the 9 min, probes may save 54 s")
    settle_micro(search.task, cache, "key", lambda *event: search.told.append(event), decision)
    assert search.told[0][:2] == ("batch_note", decision.reason)
    assert cache.entries() == {}
    assert "batch_found" in search.kinds()


def test_a_run_on_cpus_takes_the_plan_and_asks_no_node(monkeypatch: pytest.MonkeyPatch, gemfleet_home: Path) -> None:
    """Not more rows than an earlier launch of the same run came down to."""
    search = Search(monkeypatch, (10_000, 10_000))
    registry = RunRegistry(gemfleet_home / "gemfleet.db")
    registry.create_run("run-1", "run", "{}", os.getpid())
    plan = settled_by(RankDevices(2, 16 * 2**30, "cpu", "fp32"), search)
    length = plan.config.data.model_copy(update={"max_length": 128})
    train = plan.config.model_copy(update={"data": length})
    run = session(registry, train, print)
    found = find_micro(run, train, search.task.placement, Source(64), {}, plan, use_cache=True)  # type: ignore[arg-type]
    registry.add_event("run-1", EventKind.OUT_OF_MEMORY, "halved", {"to": 2})
    again = find_micro(run, train, search.task.placement, Source(64), {}, plan, use_cache=True)  # type: ignore[arg-type]
    assert (found.batch.micro, again.batch.micro) == (8, 2)
    told = [event["message"] for event in registry.events("run-1") if event["kind"] == "batch_planned"]
    assert told[0].startswith("micro-batch 8 by the plan: a pass of 1,024 tokens")
    assert told[1] == "micro-batch 2 by the plan: with more, memory ran out before"
