"""Bytes that training puts on the wire, beside the model of docs/scale.md. Each case has a network of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import REPOSITORY
from support.tiny_model import save_tiny_gemma3

pytestmark = [pytest.mark.hosts, pytest.mark.slow, pytest.mark.timeout(900)]
TOLERANCE = 0.1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gemma3(tmp_path_factory.mktemp("traffic") / "model")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_step_moves_twice_the_adapter_for_every_rank_but_one(model: Path, tmp_path: Path, ranks: int) -> None:
    """DDP: a ring of n ranks sends 2 (n-1) times the adapters' fp32 gradients a step, all ranks together.

    Taken as the difference of two adapter sizes, so that what every step sends besides (a few numbers) falls out.
    """
    child = f"{sys.executable} {REPOSITORY}/tests/support/hosts/traffic_child.py"
    script = f"ip link set lo up; exec {child} {ranks} ddp {model} {tmp_path}"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    small, large = json.loads(done.stdout.splitlines()[-1]).values()
    moved, adapter = large["step"] - small["step"], large["adapter"] - small["adapter"]
    expected = 2 * (ranks - 1) * adapter
    print(f"{ranks} ranks: {moved:,.0f} B a step for {adapter:,.0f} B of gradients; the model says {expected:,.0f}")
    print(f"{ranks} ranks: {small['step']:,.0f} B a step in all for {small['adapter']:,.0f} B of gradients")
    assert moved == pytest.approx(expected, rel=TOLERANCE, abs=20_000)
