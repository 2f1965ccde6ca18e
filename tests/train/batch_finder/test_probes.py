"""Real probe processes on a tiny model: the worst rank decides, a lost rank changes no answer, nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from gemfleet.train.batch_finder.finder import Found, find_batch
from gemfleet.train.batch_finder.probes.child import ProbeTask
from gemfleet.train.batch_finder.probes.group import GRACE_SECONDS, GroupFailure, GroupSettings, ProbeGroup, Watch
from gemfleet.train.batch_finder.probes.process import Answer, LocalProbe
from gemfleet.train.batch_finder.probes.trial import Failure, Trial
from gemfleet.train.batch_finder.report import found_sentences, trial_line
from gemfleet.train.batch_finder.setting import RankPlace, probe_tasks, tokens_per_row
from gemfleet.train.batch_finder.variant_search import SearchLimits
from gemfleet.train.batch_finder.variants import variants_of
from gemfleet.train.config.schema import TrainConfig
from support.tiny_model import save_tiny_gemma3

MIB = 2**20
TIMEOUT_S = 20.0
SLACK_S = 5.0  # ending the processes, and a machine that is busy with something else
NODES = ("10.0.0.1", "10.0.0.2")
STRATEGIES = [
    pytest.param({"strategy": "ddp"}, id="ddp"),
    pytest.param({"strategy": "fsdp2"}, id="fsdp2", marks=pytest.mark.faults),
    pytest.param({"strategy": "ddp", "context_parallel": 2}, id="context", marks=pytest.mark.faults),
    pytest.param({"strategy": "deepspeed", "deepspeed": {"stage": 3}}, id="zero3", marks=pytest.mark.faults),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gemma3(tmp_path_factory.mktemp("model"), vocab_size=4096)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert not left


def config(max_length: int = 32, **changes: Any) -> TrainConfig:
    values = {
        "model": "tiny",
        "data": {"train": "x.jsonl", "max_length": max_length},
        "lora": {"r": 4},
        "precision": "fp32",
        "batch": {"global": 8, "micro": "probe"},
        "strategy": "ddp",
        "activation_checkpointing": "off",
        **changes,
    }
    return TrainConfig.model_validate(values)


def tasks(model: Path, train: TrainConfig, ranks: int = 2) -> list[ProbeTask]:
    return probe_tasks(train, [RankPlace(str(model), rank, ranks, 0) for rank in range(ranks)])


def search(
    train: TrainConfig,
    handles: Sequence[LocalProbe],
    ranks: list[ProbeTask],
    largest: int,
    tell: Callable[[Trial], None] = lambda _: None,
) -> tuple[Found, list[Trial]]:
    trials: list[Trial] = []

    def told(_: str, trial: Trial) -> None:
        trials.append(trial)
        tell(trial)

    found = find_batch(
        variants_of(train),
        lambda _: ProbeGroup(handles, ranks, GroupSettings(0.0, TIMEOUT_S)),
        SearchLimits(largest, TIMEOUT_S, evaluates=True),
        tokens_per_row(train, len(ranks)),
        told,
    )
    return found, trials


class HurtProbe(LocalProbe):
    """Gets a signal in the middle of its n-th trial, once, at the moment `hurt_at`."""

    def __init__(self, number: int, nth: int) -> None:
        super().__init__()
        self._signal, self._left = number, nth
        self.hurt_at = 0.0

    def send(self, rows: int, evaluation: bool) -> None:
        super().send(rows, evaluation)
        self._left -= 1
        if self._left == 0:
            assert self.pid is not None
            os.kill(self.pid, self._signal)
            self.hurt_at = time.monotonic()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_cap_on_rank_1_alone_decides_for_all(model: Path, strategy: dict[str, Any]) -> None:
    train = config(max_length=1024, **strategy)
    both = tasks(model, train)
    with ProbeGroup([LocalProbe(), LocalProbe()], both, GroupSettings(0.0, TIMEOUT_S)) as group:
        one, four = group.try_rows(1), group.try_rows(4)
    growth = (four.ranks[1].peak_bytes - one.ranks[1].peak_bytes) / 3
    assert growth > 4 * MIB
    cap = one.ranks[1].peak_bytes + round(5.5 * growth)  # room for about 6 rows
    capped = [both[0], replace(both[1], memory_limit=cap)]
    found, trials = search(train, [LocalProbe(node=node) for node in NODES], capped, largest=1000)
    largest = max(candidate.rows for candidate in found.candidates)
    assert 4 <= largest <= 8
    # Of the sizes that fitted once, speed is compared among those that fitted each time: a row at the cap may not have.
    fitted = max(trial.rows for trial in trials if trial.fits)
    assert largest <= found.evaluation_rows == fitted <= 8
    assert all(rank.peak_bytes <= cap for trial in trials if trial.fits for rank in trial.ranks if rank.rank == 1)
    assert "on rank 1 (10.0.0.2)" in trial_line(strategy["strategy"], trials[0])
    assert "rank 1 on 10.0.0.2 has the least" in found_sentences(found, None)[1]
    assert max(found.memory_trials.values()) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rank_lost_in_a_trial_ends_it_for_all_in_bounded_time(
    model: Path, strategy: dict[str, Any], number: int
) -> None:
    train = config(**strategy)
    hurt, ended = HurtProbe(number, nth=3), list[float]()

    def tell(trial: Trial) -> None:
        ended.extend([time.monotonic()] if trial.failure else [])

    found, trials = search(train, [LocalProbe(), hurt], tasks(model, train), 4, tell)
    assert [candidate.rows for candidate in found.candidates] == [1, 2, 4]
    failures = [trial.failure for trial in trials if trial.failure]
    assert failures == [Failure.DIED if number == signal.SIGKILL else Failure.SILENT]
    assert "rank 1" in next(trial.message for trial in trials if trial.failure)
    bound = GRACE_SECONDS if number == signal.SIGKILL else TIMEOUT_S
    assert ended[0] - hurt.hurt_at < bound + SLACK_S


class OnKind(LocalProbe):
    """A probe that says it computes on a GPU of this name."""

    def __init__(self, number: int, gpu: str) -> None:
        super().__init__(node=NODES[number])
        self._gpu = gpu

    def poll(self) -> list[Answer]:
        return [{**answer, "device": self._gpu} if answer["kind"] == "ready" else answer for answer in super().poll()]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [pytest.param({"strategy": "fsdp2"}, id="fsdp2"), STRATEGIES[3]])
def test_a_size_is_tried_on_one_kind_while_the_other_rank_holds_one_row(model: Path, strategy: dict[str, Any]) -> None:
    """Then the other rank has more passes, and both must run them."""
    steps = [[[(512, 256, 0)]] * 4]
    ranks = [replace(task, steps=steps) for task in tasks(model, config(max_length=512, **strategy))]
    handles = [OnKind(0, "NVIDIA L4"), OnKind(1, "NVIDIA H200")]
    with ProbeGroup(handles, ranks, GroupSettings(0.08, 4 * TIMEOUT_S, gpu="NVIDIA H200")) as group:
        one, four = group.try_rows(1), group.try_rows(4)
        assert group.try_rows(2, evaluation=True).fits
    (small,), (large,) = one.ranks, four.ranks
    assert (small.rank, small.node, large.fits) == (1, NODES[1], True)
    assert large.peak_bytes > small.peak_bytes + 2 * MIB
    with ProbeGroup(handles, ranks, GroupSettings(0.08, 4 * TIMEOUT_S, gpu="Tesla T4")) as group:
        absent = group.try_rows(1)
    assert (absent.failure, absent.message) == (Failure.ABSENT, "no rank of this search is on a Tesla T4")


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_a_probe_ends_with_its_parent_even_while_stopped(stopped: bool, model: Path) -> None:
    code = (
        "import sys, time\n"
        "from gemfleet.train.batch_finder.probes.process import LocalProbe\n"
        "from gemfleet.train.batch_finder.probes.child import ProbeTask\n"
        "probe = LocalProbe()\n"
        f"probe.start(ProbeTask({{}}, {str(model)!r}, 0, 1, 0, 1, '', None))\n"
        "print(probe.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        probe = psutil.Process(int(parent.stdout.readline()))
        time.sleep(2.0)  # it has asked to be ended with its parent
        if stopped:
            probe.suspend()
        parent.kill()
    probe.wait(timeout=10)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watch(clock: Clock, ranks: int = 2) -> Watch:
    return Watch(ranks, "measured", bound_s=100.0, silence_s=30.0, clock=clock)


def verdict(watched: Watch) -> Failure:
    with pytest.raises(GroupFailure) as failed:
        watched.result(["rank 0", "rank 1"])
    return failed.value.failure


MEASURED = {"kind": "measured"}
ALIVE = {"kind": "alive"}
RAISED = {"kind": "failed", "cause": "error", "message": "connection closed by peer"}
EXITED = {"kind": "exited", "message": "ended with code -9"}
NO_MEMORY = {"kind": "failed", "cause": "memory", "message": "too much"}


def test_all_answers_settle_a_trial() -> None:
    watched = watch(Clock())
    watched.take(0, [ALIVE, MEASURED])
    assert not watched.settled()
    watched.take(1, [MEASURED])
    assert watched.settled()
    assert watched.result(["rank 0", "rank 1"]) == [MEASURED, MEASURED]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(RAISED, NO_MEMORY, Failure.MEMORY), (RAISED, EXITED, Failure.DIED), (EXITED, NO_MEMORY, Failure.MEMORY)],
)
def test_the_most_telling_failure_is_the_verdict(first: dict, second: dict, expected: Failure) -> None:  # type: ignore[type-arg]
    watched = watch(Clock())
    watched.take(0, [first])
    assert not watched.settled()
    watched.take(1, [second])
    assert watched.settled()
    assert verdict(watched) is expected


def test_after_a_failure_the_others_get_little_time() -> None:
    clock = Clock()
    watched = watch(clock)
    watched.take(1, [RAISED])
    clock.now = GRACE_SECONDS + 0.1
    watched.take(0, [ALIVE])
    assert watched.settled()
    assert verdict(watched) is Failure.ERROR


@pytest.mark.parametrize(("signs", "ends"), [(True, 100.0), (False, 30.0)])
def test_silence_and_endless_work_are_bounded(signs: bool, ends: float) -> None:
    clock = Clock()
    watched = watch(clock)
    while not watched.settled():
        clock.now += 0.5
        watched.take(0, [ALIVE])
        watched.take(1, [ALIVE] if signs else [])
    assert clock.now == pytest.approx(ends, abs=0.6)
    assert verdict(watched) is Failure.SILENT
