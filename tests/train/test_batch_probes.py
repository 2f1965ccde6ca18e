"""Real probe processes on a tiny model: the worst rank decides, a lost rank changes no answer, nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from gemfleet.train.batch_finder.child import ProbeTask
from gemfleet.train.batch_finder.finder import Found, SearchLimits, find_batch
from gemfleet.train.batch_finder.group import GRACE_SECONDS, GroupFailure, GroupSettings, ProbeGroup, Watch
from gemfleet.train.batch_finder.process import LocalProbe
from gemfleet.train.batch_finder.setting import RankPlace, probe_tasks, tokens_per_row, variants_of
from gemfleet.train.batch_finder.trial import Failure, Trial
from gemfleet.train.config import TrainConfig
from tiny_model import save_tiny_gemma3

MIB = 2**20
TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gemma3(tmp_path_factory.mktemp("model"), vocab_size=4096)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert not left


def config(max_length: int = 32) -> TrainConfig:
    values = {
        "model": "tiny",
        "data": {"train": "x.jsonl", "max_length": max_length},
        "lora": {"r": 4},
        "precision": "fp32",
        "batch": {"global": 8, "micro": "auto"},
    }
    return TrainConfig.model_validate(values)


def tasks(model: Path, train: TrainConfig, ranks: int = 2) -> list[ProbeTask]:
    return probe_tasks(train, [RankPlace(str(model), rank, ranks, 0) for rank in range(ranks)])


def search(
    train: TrainConfig, handles: Sequence[LocalProbe], ranks: list[ProbeTask], largest: int
) -> tuple[Found, list[Trial]]:
    trials: list[Trial] = []
    found = find_batch(
        variants_of(train),
        lambda _: ProbeGroup(handles, ranks, GroupSettings(0.0, TIMEOUT_S)),
        SearchLimits(largest, TIMEOUT_S),
        tokens_per_row(train, len(ranks)),
        lambda _, trial: trials.append(trial),
    )
    return found, trials


class HurtProbe(LocalProbe):
    """Gets a signal in the middle of its n-th trial, once."""

    def __init__(self, number: int, nth: int) -> None:
        super().__init__()
        self._signal, self._left = number, nth

    def send(self, rows: int) -> None:
        super().send(rows)
        self._left -= 1
        if self._left == 0:
            assert self.pid is not None
            os.kill(self.pid, self._signal)


@pytest.mark.slow
def test_a_cap_on_rank_1_alone_decides_for_all(model: Path) -> None:
    train = config(max_length=1024)
    both = tasks(model, train)
    with ProbeGroup([LocalProbe(), LocalProbe()], both, GroupSettings(0.0, TIMEOUT_S)) as group:
        one, four = group.try_rows(1), group.try_rows(4)
    growth = (four.ranks[1].peak_bytes - one.ranks[1].peak_bytes) / 3
    assert growth > 4 * MIB
    cap = one.ranks[1].peak_bytes + round(5.5 * growth)  # room for about 6 rows
    capped = [both[0], replace(both[1], memory_limit=cap)]
    found, trials = search(train, [LocalProbe(), LocalProbe()], capped, largest=1000)
    largest = max(candidate.rows for candidate in found.candidates)
    assert 4 <= largest <= 8
    assert all(rank.peak_bytes <= cap for trial in trials if trial.fits for rank in trial.ranks if rank.rank == 1)
    assert trials[0].tightest.rank == 1
    assert found.memory_trials <= 6


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_rank_lost_in_a_trial_ends_it_for_all_in_bounded_time(model: Path, number: int) -> None:
    train = config()
    started = time.monotonic()
    found, trials = search(train, [LocalProbe(), HurtProbe(number, nth=3)], tasks(model, train), largest=4)
    assert [candidate.rows for candidate in found.candidates] == [1, 2, 4]
    failures = [trial.failure for trial in trials if trial.failure]
    assert failures == [Failure.DIED if number == signal.SIGKILL else Failure.SILENT]
    assert "rank 1" in next(trial.message for trial in trials if trial.failure)
    assert time.monotonic() - started < 4 * TIMEOUT_S


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_a_probe_ends_with_its_parent_even_while_stopped(stopped: bool, model: Path) -> None:
    code = (
        "import sys, time\n"
        "from gemfleet.train.batch_finder.process import LocalProbe\n"
        "from gemfleet.train.batch_finder.child import ProbeTask\n"
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
