"""Programs as people start them, on pretended GPUs: `python -m train` and `torchrun`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from support.nullgpu.commands import run, write_config
from support.nullgpu.device import PretendedGpu
from support.tiny_run import make_workplace

pytestmark = [pytest.mark.nullgpu, pytest.mark.slow]

TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "--no-python", "bash", "-c"]
STRATEGIES = ("ddp", "fsdp2", "deepspeed")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("entry"))


def torchrun(workplace: Path, config: str, *options: str) -> str:
    """Two ranks on two GPUs, each with a log of its own; the output."""
    program = " ".join([sys.executable, "-P", "-m", "support.nullgpu.train_main", config, *options])
    command = f"NULLGPU_LOG=$PWD/rank-$RANK.log exec {program}"
    done = run(workplace, [*TORCHRUN, command], PretendedGpu(count=2), {"NULLGPU_PATIENCE": "60"})
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_under_torchrun_each_rank_uses_its_own_gpu_and_a_run_resumes(workplace: Path, strategy: str) -> None:
    out = f"out-{strategy}"
    torchrun(workplace, write_config(workplace, strategy=strategy), "--out", out)
    for rank in (0, 1):
        events = (workplace / f"rank-{rank}.log").read_text()
        made = re.findall(r"communicator: rank (\d) of 2 on device (\d)", events)
        assert made
        assert set(made) == {(str(rank), str(rank))}
        used = set(re.findall(r"(?:collective|malloc) .* on device (\d)", events))
        assert used == {str(rank)}
    config = write_config(workplace, strategy=strategy, max_steps=8)
    told = torchrun(workplace, config, "--out", out, "--resume")
    assert "resumed from checkpoint-6 at step 6 of 8" in told
    assert (workplace / out / "checkpoint-8").exists() or "checkpoint-8" in told


def test_one_process_trains_and_finds_its_batch(workplace: Path) -> None:
    config = write_config(workplace, batch={"global": 8, "micro": "probe"})
    done = run(workplace, ["-m", "gemfleet.train", config, "--out", "out-alone"], PretendedGpu())
    assert done.returncode == 0, done.stdout[-4000:]
    assert "rank 0 on cuda:0 (NVIDIA H200)" in done.stdout
    assert re.search(r"micro", done.stdout)


def test_a_gpu_that_cuda_cannot_use_is_an_error_of_one_sentence(workplace: Path) -> None:
    """Its driver is too old: training on the CPU without a word would take days."""
    done = run(
        workplace, ["-m", "gemfleet.train", write_config(workplace), "--out", "out-old"], PretendedGpu(unusable=True)
    )
    assert done.returncode == 2, done.stdout[-2000:]
    assert "Traceback" not in done.stdout
    assert "GPU" in done.stdout.strip().splitlines()[-1]
