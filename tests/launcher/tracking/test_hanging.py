"""A tracker that hangs, refuses or fails costs a run nothing but a sentence."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from gemfleet.cluster.registry.run_recorder import RunRecorder
from gemfleet.launcher.config.reports import TrackerConfig
from gemfleet.launcher.tracking import processes
from gemfleet.launcher.tracking.processes import tracked
from gemfleet.train.step.record import points
from support.followed_run import RUN, FollowedRun

TRACKERS = {"mlflow": TrackerConfig(type="mlflow"), "wandb": TrackerConfig(type="wandb", project="p")}
FOLLOWED_SECONDS = 15.0
WHO = {"node": "node-1", "address": "127.0.0.1", "pid": 1}
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that accepts every connection and never answers; the environment leads there."""
    held: list[socket.socket] = []
    server = socket.create_server(("127.0.0.1", 0), backlog=50)

    def accept() -> None:
        try:
            while True:
                held.append(server.accept()[0])
        except OSError:
            return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.getsockname()[1]}"
    for name, value in {"MLFLOW_TRACKING_URI": address, "WANDB_BASE_URL": address, "WANDB_API_KEY": KEY}.items():
        monkeypatch.setenv(name, value)
    yield address
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()
    for connection in held:
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRACKERS)
def test_a_server_that_hangs_costs_a_run_under_1_percent(kind: str, tmp_path: Path, hanging: str) -> None:
    """What it may cost: processor time beside the run, and waiting at its end. Importing the package is not counted.

    A step of the recorder takes as long with it as without, because nothing of a tracker is in its process.
    """
    pytest.importorskip(kind)
    run = FollowedRun(tmp_path / "home")
    recorder = RunRecorder(str(tmp_path / "home"), RUN, points)
    others = set(psutil.Process().children())  # of other tests
    with tracked(run.registry, RUN, [TRACKERS[kind]], print):
        (child,) = set(psutil.Process().children()) - others
        _wait_for(lambda: run.told() != [])
        begun, used = time.monotonic(), _processor_seconds(child)
        while time.monotonic() - begun < FOLLOWED_SECONDS:
            step = len(run.registry.metrics(RUN)) + 1
            recorder.push(0, [{"kind": "step", "step": step, "time": time.time(), "loss": 1.0}], WHO)
            time.sleep(0.05)
        used = _processor_seconds(child) - used
        run.publish()
        ended = time.monotonic()
    waited = time.monotonic() - ended
    told = run.told()
    print(f"{kind}: {used:.3f} s of a processor in {FOLLOWED_SECONDS:.0f} s, {waited:.2f} s at the end; {told}")
    assert used < 0.01 * FOLLOWED_SECONDS
    assert waited < 1.5  # 1 % of a run of 150 s
    assert len(told) == 2, told  # once that it takes nothing, once what it lacks
    assert "the run goes on" in told[0]
    assert "in use" not in told[1]  # a second try is like the first
    assert f"lacks {step} of {step} steps and the end of the run" in told[1]
    assert not child.is_running()
    secrets = [path for path in (tmp_path / "home").rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert secrets == []


@pytest.mark.slow
def test_a_server_whose_answer_never_ends_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, so no request fails."""
    pytest.importorskip("mlflow")
    monkeypatch.setattr(processes, "STUCK_SECONDS", 2.0)
    asked = threading.Event()

    class Dripping(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            with suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: ")
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.2)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    run = FollowedRun(tmp_path / "home")
    config = TrackerConfig(type="mlflow", uri=f"http://127.0.0.1:{server.server_address[1]}")
    with tracked(run.registry, RUN, [config], print):
        assert asked.wait(120.0)
        ended = time.monotonic()
    assert time.monotonic() - ended < 8.0
    assert "lacks the end of the run (it took nothing for 2 s)" in run.told()[-1]
    server.shutdown()
    server.server_close()


def _wait_for(found: object, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not found():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _processor_seconds(process: psutil.Process) -> float:
    """Of the process and of those that its package started."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))
