"""Waiting for training, and judging a failure: with stand-ins for Ray's trainer and for the recorder."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
from gemfleet.launcher.run.training.ray_trainer import (
    FIT_VARIABLES,
    EndsForGood,
    FitThread,
    TrainingCannotSucceedError,
    watch,
)


class FakeTrainer:
    """Trains until it is told to end."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.seen: dict[str, str | None] = {}

    def fit(self) -> None:
        self.seen = {name: os.environ.get(name) for name in FIT_VARIABLES}
        assert self.end.wait(10)


class FakeRecorder:
    def __init__(self, fatal: str | None = None, broken: bool = False) -> None:
        self.said, self.broken = fatal, broken
        self.events: list[tuple[Any, ...]] = []

    def call(self, method: str, *arguments: Any) -> str | None:
        if self.broken:
            raise OSError("unreachable")
        if method == "event":
            self.events.append(arguments)
        return self.said if method == "fatal" else None


def test_sigterm_asks_to_stop_and_the_handler_is_put_back() -> None:
    trainer = FakeTrainer()
    fit = FitThread(trainer)  # type: ignore[arg-type]
    fit.start()
    before = signal.getsignal(signal.SIGTERM)
    polls = 0

    def poll() -> None:
        nonlocal polls
        polls += 1
        if polls == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    assert watch(fit, poll, trainer.end.set) is True
    assert signal.getsignal(signal.SIGTERM) is before
    assert trainer.seen == FIT_VARIABLES
    assert not FIT_VARIABLES.keys() & os.environ.keys()


def test_an_error_that_would_come_again_ends_the_run() -> None:
    with pytest.raises(TrainingCannotSucceedError, match="row 7 is bad"):
        EndsForGood(FakeRecorder("row 7 is bad")).after_exception(None, {0: RuntimeError("gloo: peer gone")})  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [False, True])
def test_a_lost_rank_is_told_and_restarted(broken: bool) -> None:
    recorder = FakeRecorder(broken=broken)
    EndsForGood(recorder).after_exception(None, {1: RuntimeError("the actor died\nand pages of more")})  # type: ignore[arg-type]
    assert recorder.events == ([] if broken else [("rank_failed", "rank 1: RuntimeError: the actor died", {"rank": 1})])
