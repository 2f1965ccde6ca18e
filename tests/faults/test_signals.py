"""Ctrl-C, SIGTERM and SIGHUP in every phase, to the driver and to its group: an end state, its exit code, nothing left.

The everyday tests send a sample; `make test-faults` sends each signal in each phase to both, and prints a row for each.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import yaml
from gemfleet.cluster.registry.run_registry import Run, RunRegistry
from support.fault_table import tell, verifies
from support.tiny_run import WAIT_SECONDS, make_workplace, wait_for_step

PHASES = (
    *("queued", "preflight", "staging", "preparing_data"),
    *("finding_batch", "training", "restarting", "publishing"),
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAMPLE = {("preparing_data", signal.SIGTERM, "pid"), ("training", signal.SIGHUP, "group")}
GONE_SECONDS = 20.0
# Phases that pass in a moment are held; the others are met as they go.
HELD = """
import sys, time
from gemfleet.launcher import cli
from gemfleet.launcher.run.session import RunSession

enter, phase = RunSession.enter, sys.argv[1]

def held(self, state, text):
    enter(self, state, text)
    if state in ("preflight", "staging", "preparing_data", "publishing") and state == phase:
        time.sleep(120)

RunSession.enter = held
sys.argv = ["gemfleet", "train", "run.yaml"]
cli.main()
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("work"))


def each_case() -> list[Any]:
    cases = [(phase, number, target) for phase in PHASES for number in SIGNALS for target in ("pid", "group")]
    marks = [[pytest.mark.slow] if case in SAMPLE else [pytest.mark.slow, pytest.mark.faults] for case in cases]
    return [
        pytest.param(*case, marks=mark, id=f"{case[0]}-{case[1].name}-{case[2]}")
        for case, mark in zip(cases, marks, strict=True)
    ]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("phase", "number", "target"), each_case())
def test_a_signal_ends_the_run_in_order(
    workplace: Path, tmp_path: Path, phase: str, number: signal.Signals, target: str
) -> None:
    home = tmp_path / "home"
    driver = start(workplace, home, phase, [sys.executable, "-c", HELD, phase])
    try:
        run = reach(home, phase, driver)
        sent = time.monotonic()
        (os.killpg if target == "group" else os.kill)(driver.pid, number)
        output, _ = driver.communicate(timeout=120)
        seconds = time.monotonic() - sent
    finally:
        driver.kill()
    ended = RunRegistry(home / "gemfleet.db").get_run(run.id)
    left = processes_left(home)
    tell(
        f"{number.name} to the {target} while {phase}",
        f"{ended.state}, exit code {driver.returncode}, {len(left)} processes left, {saved(home, run.id)} saved",
        *("-", 0, seconds),
    )
    assert left == []
    assert driver.returncode == 130, output
    assert "Traceback" not in output
    if phase in ("training", "restarting"):
        assert ended.state == "stopped"
        assert saved(home, run.id) > 0
        verifies(home, run.id)
    else:
        assert ended.state == "interrupted"
        assert f"in the state {phase}" in ended.reason


def read_until(terminal: int, closed: Event) -> None:
    """Reads what a program writes to its terminal, and forgets it."""
    while not closed.is_set():
        if select.select([terminal], [], [], 0.1)[0]:
            os.read(terminal, 65536)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_terminal_that_closes_ends_the_run_with_a_checkpoint(workplace: Path, tmp_path: Path) -> None:
    """The kernel sends SIGHUP, and every line that is written from then on is an error."""
    home = tmp_path / "home"
    ours, terminal = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    command = [sys.executable, "-m", "gemfleet.launcher.cli", "train", "run.yaml"]
    driver = start(workplace, home, "training", command, terminal, take_terminal)
    os.close(terminal)
    closed = Event()
    screen = Thread(target=read_until, args=(ours, closed))  # a full terminal would make the driver wait
    screen.start()
    run = reach(home, "training", driver)
    closed.set()
    screen.join()
    os.close(ours)
    assert driver.wait(120) == 130
    assert RunRegistry(home / "gemfleet.db").get_run(run.id).state == "stopped"
    assert saved(home, run.id) > 0
    left = processes_left(home)
    tell("the terminal closes while training", f"stopped, exit code 130, {len(left)} processes left", "-", 0)
    assert left == []


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_run_whose_reader_has_gone_trains_to_its_end(workplace: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    driver = start(workplace, home, "preflight", [sys.executable, "-m", "gemfleet.launcher.cli", "train", "run.yaml"])
    assert driver.stdout is not None
    assert driver.stdout.readline()
    driver.stdout.close()
    assert driver.wait(WAIT_SECONDS) == 0
    (run,) = RunRegistry(home / "gemfleet.db").list_runs()
    left = processes_left(home)
    tell("whoever read the output has gone", f"{run.state}, exit code 0, {len(left)} processes left", "-", 0)
    assert run.state == "succeeded"
    assert left == []


def start(
    workplace: Path,
    home: Path,
    phase: str,
    command: Sequence[str],
    terminal: int | None = None,
    before: Callable[[], None] | None = None,
) -> subprocess.Popen[str]:
    """A run with a local Ray, in a session of its own; long enough to be met while it trains."""
    train = {
        "model": "./model",
        "data": {"train": "rows.jsonl", "max_length": 64},
        "batch": {"global": 4, "micro": "probe" if phase == "finding_batch" else 1},
        "precision": "fp32",
        "checkpoint": {"every": 50},
        "epochs": 10_000.0 if phase in ("training", "restarting") else 0.25,
    }
    cluster = {"address": "local", "workers": 1, "max_failures": 2}
    config = {"name": "tiny", "train": train, "cluster": cluster, "api": {"enabled": False}}
    (workplace / "run.yaml").write_text(yaml.safe_dump(config))
    environment = {**os.environ, "GEMFLEET_HOME": str(home), "OMP_NUM_THREADS": "1"}
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # else the driver would inherit that it is
    try:
        return subprocess.Popen(
            command,
            cwd=workplace,
            env=environment,
            stdin=terminal if terminal is not None else subprocess.DEVNULL,
            stdout=terminal if terminal is not None else subprocess.PIPE,
            stderr=terminal if terminal is not None else subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=before,
        )
    finally:
        signal.signal(signal.SIGINT, ignored)


def reach(home: Path, phase: str, driver: subprocess.Popen[str]) -> Run:
    """The run once it is well inside the phase."""
    if phase in ("training", "restarting"):
        registry = wait_for_step(home, 2)
        (run,) = registry.list_runs()
        if phase == "training":
            return run
        os.kill(registry.ranks(run.id)[0]["pid"], signal.SIGKILL)
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline and driver.poll() is None:
        runs = RunRegistry(home / "gemfleet.db").list_runs() if (home / "gemfleet.db").exists() else []
        if runs and runs[0].state == phase:
            time.sleep(1.0)
            return runs[0]
        time.sleep(0.02)
    raise AssertionError(f"{phase} was not reached: {driver.communicate()[0] if driver.poll() is not None else ''}")


def saved(home: Path, run_id: str) -> int:
    return len(list((home / "runs" / run_id / "checkpoints").glob("checkpoint-*")))


def processes_left(home: Path) -> list[str]:
    """Processes of this run that are still there after a while, Ray's among them."""
    deadline = time.monotonic() + GONE_SECONDS
    while (found := list(processes_of(home))) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def processes_of(home: Path) -> list[str]:
    mark, found = f"GEMFLEET_HOME={home}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found
