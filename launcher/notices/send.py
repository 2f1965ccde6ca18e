"""The process that tells one webhook of a run, and tries again for some minutes."""

from __future__ import annotations

import binascii
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import httpx2
from gemfleet.cluster.errors import ClusterError
from gemfleet.cluster.private import keep_private
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.launcher.config.reports import NotifyConfig

from .message import body_of, facts_of, headers, message_id
from .start import notices_of

PAUSES = (1.0, 5.0, 30.0, 120.0)  # seconds between tries
TIMEOUT = httpx2.Timeout(10.0, connect=5.0)
MOST_SECONDS = 600  # for all tries, whatever a webhook does
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class TooLongError(BaseException):
    """All tries together took too long. No Exception, which would be a try that failed."""


def send(registry: RunRegistry, run_id: str, index: int, what: str, pauses: Sequence[float] = PAUSES) -> None:
    """Tell the webhook of this index in the run's configuration. An event says if it could not be told."""
    run = registry.get_run(run_id)
    config = notices_of(run.config)[index]
    secret = os.environ.get(config.secret) if config.secret else None
    if config.secret and not secret:
        problem: str | None = f"${config.secret}, which signs the message, is not set for process {os.getpid()}"
    else:
        facts = facts_of(registry, run, what)
        body, name = body_of(facts, config.format), message_id(facts)
        try:
            problem = with_tries(lambda: post(config, body, name, secret), pauses)
        except TooLongError:
            problem = f"its answer did not end in {MOST_SECONDS} s"
    if problem:
        with suppress(ClusterError):
            text = f"{config.place} was not told that the run {what}: {problem}"
            registry.add_event(run_id, EventKind.NOTICE_LOST, text, {"place": config.place, "what": what})


def post(config: NotifyConfig, body: bytes, name: str, secret: str | None) -> tuple[str | None, bool]:
    """One try. Returns what went wrong, None if nothing, and whether to try again. Never names the address.

    Follows no redirection, because it could lead elsewhere, and reads no answer. name: the message's id
    """
    try:
        sent = headers(name, body, int(time.time()), secret)
        with (
            httpx2.Client(timeout=TIMEOUT, follow_redirects=False) as client,
            client.stream("POST", config.url, content=body, headers=sent) as answer,
        ):
            status = answer.status_code
    except binascii.Error:
        return f"the value of ${config.secret} is not base64 after whsec_", False
    except httpx2.HTTPError as error:
        return type(error).__name__, True
    except Exception as error:  # for example an address that is none
        return type(error).__name__, False
    return (None if 200 <= status < 300 else f"it answered {status}"), status in AGAIN


def with_tries(attempt: Callable[[], tuple[str | None, bool]], pauses: Sequence[float]) -> str | None:
    """Try until it goes well. Returns what went wrong last; None if nothing."""
    for number, pause in enumerate((*pauses, None), 1):
        problem, again = attempt()
        if problem is None:
            return None
        if not again or pause is None:
            return f"{problem} (tries: {number})"
        time.sleep(pause)
    return None


def _too_long(number: int, frame: object) -> None:
    raise TooLongError


def main(home: str, run_id: str, index: str, what: str) -> None:
    """Tell one webhook. Arguments: see `send`"""
    keep_private()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(MOST_SECONDS)  # each byte may come in time
    send(RunRegistry(Path(home) / "gemfleet.db"), run_id, int(index), what)


if __name__ == "__main__":
    main(*sys.argv[1:])
