"""Starts the API together with a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ray
from gemfleet.cluster.head import actor_on_head
from gemfleet.launcher.config.schema import ApiConfig

from .actor import ANSWER_SECONDS, actor_name, api_facts, start_api

LOOK_SECONDS = 0.2
END_IS_SEEN_SECONDS = 2.5  # a page asks for the last figures a second after the end


@contextmanager
def seen_to_the_end(home: Path, config: ApiConfig, ends_with_run: bool) -> Iterator[None]:
    """After the block, let somebody who watches the run see its end, before the run's cluster and its API end too.

    The run's end must be in the registry when the block ends. If nobody watches, nothing is waited for.
    """
    try:
        yield
    finally:
        if config.enabled and ends_with_run and _is_watched(home):
            time.sleep(END_IS_SEEN_SECONDS)


def _is_watched(home: Path) -> bool:
    """Whether a connection to the API is open. False when the API does not answer."""
    if not ray.is_initialized():  # asking would start it
        return False
    try:
        actor = actor_on_head(actor_name(home))
        return bool(ray.get(actor.connections.remote(), timeout=END_IS_SEEN_SECONDS))
    except Exception:
        return False


@contextmanager
def status_api(home: Path, config: ApiConfig, page: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Start the API while the block runs, and tell where it is once it serves, at the latest when the block ends.

    A run goes on without an API. page: of the dashboard, as in `/#/runs/demo-1`
    """
    if not config.enabled:
        yield
        return
    starting, over, ended = _Starting(home, config), Event(), Event()

    def say() -> None:
        try:
            while not over.is_set():
                if starting.answers(LOOK_SECONDS):
                    tell(starting.sentence(page))
                    return
        finally:
            ended.set()

    Thread(target=say, name="gemfleet-api", daemon=True).start()
    try:
        yield
        ended.wait(ANSWER_SECONDS)
    finally:
        over.set()
        ended.wait(ANSWER_SECONDS)  # a thread that asks Ray while it shuts down would end the whole process


class _Starting:
    """An API that is starting. Its failure becomes a sentence, never an error of the run."""

    def __init__(self, home: Path, config: ApiConfig) -> None:
        self._home, self._config = home, config
        self._actor: Any = None
        self._error: Exception | None = None
        try:
            self._actor = start_api(home, config)
            self._asked = self._actor.facts.remote()
        except Exception as error:
            self._error = error
        self._until = time.monotonic() + ANSWER_SECONDS

    def answers(self, seconds: float) -> bool:
        """Wait so long for the API. Returns whether `sentence` need not wait: it serves, failed, or is late."""
        if self._error is not None:
            return True
        try:
            done, _ = ray.wait([self._asked], timeout=seconds)
        except Exception as error:
            self._error = error
            return True
        if not done and time.monotonic() > self._until:
            self._error = TimeoutError(f"it did not answer within {ANSWER_SECONDS:g} s")
        return bool(done) or self._error is not None

    def sentence(self, page: str) -> str:
        """Wait until the API serves. Returns a sentence that says where it is, or why there is none."""
        try:
            if self._error is not None:
                raise self._error
            return f"dashboard: {api_facts(self._home, self._config, self._actor).url}{page}"
        except Exception as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            return f"the dashboard did not start ({reason}); `gemfleet serve` shows the same"
