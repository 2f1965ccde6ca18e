"""`gemfleet tensorboard` serves a run's curves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from gemfleet.cluster.registry.run_recorder import RunRecorder
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.train.step.record import points as points_of

WAIT_SECONDS = 120.0


@pytest.mark.slow
def test_the_command_serves_the_loss_of_a_run(tmp_path: Path) -> None:
    RunRegistry(tmp_path / "gemfleet.db").create_run("alpha-1", "alpha", "{}", os.getpid())
    recorder = RunRecorder(str(tmp_path), "alpha-1", points_of)
    who = {"node": "n", "address": "127.0.0.1", "pid": os.getpid()}
    recorder.push(0, [{"kind": "step", "step": step, "loss": 3.0 - step} for step in (1, 2)], who)
    recorder.flush()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gemfleet.launcher.cli", "tensorboard", "latest", "--port", str(port)]
    environment = {**os.environ, "GEMFLEET_HOME": str(tmp_path)}
    output = (tmp_path / "output.txt").open("w")
    process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        points = wait_for_points(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        process.wait(20)
    assert [(step, value) for _, step, value in points] == [(1, 2.0), (2, 1.0)]


def wait_for_points(url: str, process: subprocess.Popen[bytes]) -> list[list[float]]:
    """What TensorBoard answers for the loss, once it has read the files."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the command ended"
        try:
            with urllib.request.urlopen(f"{url}/data/plugin/scalars/tags") as answer:
                runs = json.load(answer)
            for run, tags in runs.items():
                if "train/loss" in tags:
                    with urllib.request.urlopen(
                        f"{url}/data/plugin/scalars/scalars?tag=train/loss&run={run}"
                    ) as answer:
                        points: list[list[float]] = json.load(answer)
                        return points
        except OSError:
            pass
        time.sleep(0.3)
    raise AssertionError("TensorBoard showed no loss")
