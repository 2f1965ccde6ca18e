"""Waiting for training, with a stand-in for Ray's trainer."""

from __future__ import annotations

import os
import signal
import threading

from gemfleet.launcher.run.training.processes import FIT_VARIABLES
from gemfleet.launcher.run.training.ray_trainer import FitThread, watch


class FakeTrainer:
    """Trains until it is told to end."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.seen: dict[str, str | None] = {}

    def fit(self) -> None:
        self.seen = {name: os.environ.get(name) for name in FIT_VARIABLES}
        assert self.end.wait(10)


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
