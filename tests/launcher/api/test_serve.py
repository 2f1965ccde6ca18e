"""`gemfleet serve` as a process of its own: killed and started again, and ended while streams are open."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.api.client import ApiClient, ApiProblem
from gemfleet.launcher.api.client_messages import Message
from support.servers.api_live import fill, step_record

START_SECONDS = 60.0


def start(home: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """The process and its address, once it says so."""
    command = [sys.executable, "-m", "gemfleet.launcher.cli", "serve", *options]
    environment = {**os.environ, "GEMFLEET_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("dashboard: "):
        process.kill()
        raise AssertionError(line + process.stdout.read())
    return process, line.split()[1].rstrip("/")


def test_a_killed_api_comes_back_and_streams_go_on_without_loss_or_repetition(tmp_path: Path) -> None:
    registry = fill(tmp_path)
    process, url = start(tmp_path, "--port", "0")
    told: list[Message] = []
    with ApiClient(url) as client:
        follower = threading.Thread(target=lambda: told.extend(client.follow("alpha-2", metrics=True)), daemon=True)
        follower.start()
        for step in range(4, 60):
            registry.add_metrics("alpha-2", [step_record(step, 100)])
            registry.add_event("alpha-2", "note", f"step {step}")
            if step == 25:
                time.sleep(1.0)
                process.kill()
                process.wait()
                process, again = start(tmp_path, "--port", url.rpartition(":")[2])
                assert again == url
        registry.transition("alpha-2", RunState.STOPPED)
        follower.join(START_SECONDS)
    process.terminate()
    assert process.wait(15) in (0, -signal.SIGTERM)
    assert not follower.is_alive()
    assert [m.data["step"] for m in told if m.kind == "metric"] == list(range(1, 60))
    assert [m.data["message"] for m in told if m.data.get("type") == "note"] == [f"step {n}" for n in range(4, 60)]


def test_it_ends_at_once_while_a_stream_is_open_and_asks_for_its_token(tmp_path: Path) -> None:
    fill(tmp_path)
    process, url = start(tmp_path, "--port", "0", "--token")
    token = (tmp_path / "api" / "read.token").read_text().strip()
    with ApiClient(url) as stranger, pytest.raises(ApiProblem, match="a token is needed"):
        stranger.runs()
    with ApiClient(url, token) as client:
        stream = client._stream("/api/v1/runs/alpha-2/events", {}, "")
        assert next(stream).kind == "event"
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(15)
        assert time.monotonic() - begin < 5
        assert [message.kind for message in stream] == ["event"] * 2
