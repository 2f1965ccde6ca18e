"""The proof for a real GPU goes through all its parts here, without judging a computed number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.gpu_proof.parts import PARTS
from support.nullgpu.commands import run
from support.nullgpu.device import PretendedGpu

pytestmark = [pytest.mark.nullgpu, pytest.mark.slow]
SECONDS = 600.0


def test_every_part_ends_well(tmp_path: Path) -> None:
    command = ["-m", "support.gpu_proof", "--no-numbers", "--quick", "--out", str(tmp_path / "proof")]
    done = run(tmp_path, command, PretendedGpu(), seconds=SECONDS)
    verdicts = json.loads(done.stdout.strip().splitlines()[-1])["results"]
    assert done.returncode == 0, (verdicts, done.stdout[-4000:])
    assert set(verdicts) == set(PARTS)
    assert set(verdicts.values()) <= {"passed", "not compared"}
