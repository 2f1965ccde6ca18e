"""Starts a process that tells a webhook of a run. Whoever ends a run calls it, and goes on at once.

A process of its own, because a webhook may hang and a message is retried for minutes, also after the driver has ended.
It finds address and state in the registry, so that no process list shows an address.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
from gemfleet.cluster.registry.run_records import Run
from gemfleet.launcher.config.reports import NotifyConfig
from gemfleet.train.config.load import parse_yaml
from gemfleet.train.errors import UserError
from pydantic import TypeAdapter

WAIT_SECONDS = 3.0
POLL_SECONDS = 0.05
SECTION = TypeAdapter(tuple[NotifyConfig, ...])
_started: list[subprocess.Popen[bytes]] = []


def tell(home: Path, run: Run, what: str) -> None:
    """Start a process for each webhook that wants to know. what: a state, or `stalled`"""
    _started[:] = [process for process in _started if process.poll() is None]
    for index, config in enumerate(notices_of(run.config)):
        if what in config.on:
            with suppress(OSError):  # no more processes; the run goes on
                _started.append(_start(str(home), run.id, str(index), what))


def _start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "gemfleet.launcher.notices.send", *arguments]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True, cwd=arguments[0])


def notices_of(config: str) -> tuple[NotifyConfig, ...]:
    """The section `notify` of a run's configuration as the registry has it; empty for one that cannot be read."""
    if "notify:" not in config:
        return ()
    try:
        return SECTION.validate_python(parse_yaml(config).get("notify") or ())
    except (yaml.YAMLError, ValueError, AttributeError):
        return ()


def check_notices(notices: Sequence[NotifyConfig]) -> None:
    """Raise UserError for a webhook whose messages could not be signed here. Connects to nothing."""
    for index, config in enumerate(notices):
        if config.secret is not None and not os.environ.get(config.secret):
            raise UserError(
                f"notify[{index}].secret: ${config.secret}, which signs the messages, is not set in the environment of "
                "the process that starts the run; set it on the head, or leave `secret` out"
            )


@contextmanager
def first_tries() -> Iterator[None]:
    """After the block, give the processes that this one started time for a first try: a container may end with us."""
    try:
        yield
    finally:
        deadline = time.monotonic() + WAIT_SECONDS
        while any(process.poll() is None for process in _started) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
