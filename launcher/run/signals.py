"""The signals that end a run in order: Ctrl-C, SIGTERM, and SIGHUP from a terminal that closes.

In every phase a signal raises KeyboardInterrupt in the main thread, and the driver ends the run. Only while ranks train
does the driver ask them to stop instead (`training/ray_trainer.py: watch`). Who handles a signal calls `heard`. Python
drops an exception that is raised in certain places, for example in a callback of a fork. So the signal is raised again
until it is heard, but not while its own KeyboardInterrupt is being handled.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_CODE = 130
ONE_PRESS_SECONDS = 1.0  # service managers and closing terminals send two signals at once; they count as one
AGAIN_SECONDS = 0.5
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP (the terminal closed)"}


class EndingSignals:
    """The handlers of this process, and the signals that came.

    asked: the first signal, in words; None before it comes
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._pending = self._ending = self._held = self._installed = self._again = False
        self._last = 0.0
        self._own = signal.SIGINT  # wakes the main thread; a SIGTERM ends the process while Ray shuts down

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals while the block runs, if this is the main thread.

        A signal that this process ignores, as under nohup or in a script's background, stays ignored.
        """
        if self._installed or threading.current_thread() is not threading.main_thread():
            yield
            return
        self.__init__()  # type: ignore[misc]
        before = {number: signal.getsignal(number) for number in ENDING}
        hook, sys.unraisablehook = sys.unraisablehook, _say_nothing_of_interrupts(sys.unraisablehook)
        heeded = [number for number in ENDING if before[number] not in (signal.SIG_IGN, None)]
        self._own = min(heeded, default=signal.SIGTERM, key=lambda number: number == signal.SIGTERM)
        self._installed = True
        for number in heeded:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            self._installed = self._pending = False
            sys.unraisablehook = hook
            for number in heeded:
                signal.signal(number, before[number])

    @contextmanager
    def held(self) -> Iterator[None]:
        """A signal that comes while the block runs waits for `heed`."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def heed(self) -> None:
        """Raise KeyboardInterrupt for a signal that nobody has handled."""
        if self._pending:
            raise KeyboardInterrupt

    def heard(self) -> None:
        """The signal is handled. The next one raises again."""
        self._pending = False

    def ending(self) -> None:
        """The run has its last state and only tidies up. A first signal is ignored now, a second ends the process."""
        self._pending, self._ending = False, True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._again:
            self._again = False
            if self._pending and not self._held and not _unwinds():
                raise KeyboardInterrupt
            return
        now = time.monotonic()
        if self.asked is not None and now - self._last < ONE_PRESS_SECONDS:
            return
        if self._ending and self.asked is not None:
            os._exit(EXIT_CODE)
        self._last = now
        self.asked = self.asked or NAMES[signal.Signals(number)]
        if self._ending:
            return
        self._pending = True
        threading.Thread(target=self._insist, name="gemfleet-signals", daemon=True).start()
        if not self._held:
            raise KeyboardInterrupt

    def _insist(self) -> None:
        while self._pending:
            time.sleep(AGAIN_SECONDS)
            if self._pending:
                self._again = True
                signal.pthread_kill(threading.main_thread().ident or 0, self._own)


def _unwinds() -> bool:
    """Whether this thread is handling a KeyboardInterrupt."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _say_nothing_of_interrupts(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda unraisable: None if unraisable.exc_type is KeyboardInterrupt else hook(unraisable)


SIGNALS = EndingSignals()
