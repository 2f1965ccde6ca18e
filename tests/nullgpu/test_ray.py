"""Whole runs through Ray on two pretended GPUs: ranks on their own GPUs, a batch that finds itself, a lost rank."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from gemfleet.cluster.registry.run_registry import RunRegistry
from support.nullgpu.commands import write_config
from support.nullgpu.device import PretendedGpu
from support.tiny_run import ends, gemfleet, make_workplace, states, wait_for_step

pytestmark = [pytest.mark.nullgpu, pytest.mark.slow]

FEW_STEPS = 6


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("ray"))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """For every process that this test starts: Ray itself, its workers, the probes."""
    for name, value in PretendedGpu(count=2).variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NULLGPU_PATIENCE", "120")


def logs(home: Path, run: str) -> str:
    return "".join(path.read_text() for path in (home / "runs" / run / "logs").glob("*.log"))


def devices(home: Path, run: str) -> dict[str, str]:
    """The device of each rank, by its number, as the ranks' logs say."""
    return dict(re.findall(r"rank (\d) on (\S+) \(", logs(home, run)))


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "deepspeed"])
def test_a_run_uses_both_gpus(workplace: Path, tmp_path: Path, strategy: str) -> None:
    config = write_config(workplace, f"both-{strategy}", strategy=strategy)
    ends(gemfleet(workplace, tmp_path, "train", config))
    (run,) = RunRegistry(tmp_path / "gemfleet.db").list_runs()
    assert run.state == "succeeded"
    assert devices(tmp_path, run.id) == {"0": "cuda:0", "1": "cuda:1"}


@pytest.mark.usefixtures("two_gpus")
def test_the_batch_is_found_by_probes_on_both_gpus(workplace: Path, tmp_path: Path) -> None:
    config = write_config(workplace, "auto", strategy="auto", batch={"global": 8, "micro": "probe"})
    ends(gemfleet(workplace, tmp_path, "train", config))
    registry = RunRegistry(tmp_path / "gemfleet.db")
    (run,) = registry.list_runs()
    kinds = [event["kind"] for event in registry.events(run.id)]
    assert run.state == "succeeded"
    assert "batch_found" in kinds
    assert "batch_trial" in kinds
    assert "finding_batch" in states(registry, run.id)


@pytest.mark.usefixtures("two_gpus")
def test_each_kind_of_gpus_finds_its_own_batch(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ["NVIDIA H200", "NVIDIA L4"]
    monkeypatch.setenv("NULLGPU_NAME", ";".join(kinds))
    batch = {"global": 8, "micro": "probe"}
    config = write_config(workplace, "kinds", cluster={"gpu_kind": "any"}, batch=batch, strategy="fsdp2")
    ends(gemfleet(workplace, tmp_path, "train", config))
    registry = RunRegistry(tmp_path / "gemfleet.db")
    (run,) = registry.list_runs()
    events = registry.events(run.id)
    assert run.state == "succeeded"
    assert {event["data"]["gpu"] for event in events if event["kind"] == "batch_trial"} == set(kinds)
    (found,) = [event["data"]["rows_by_gpu"] for event in events if "rows_by_gpu" in event["data"]]
    assert list(found) == kinds
    assert set(re.findall(r"rank \d on cuda:\d \((.*?)\)", logs(tmp_path, run.id))) == set(kinds)


@pytest.mark.usefixtures("two_gpus")
def test_a_lost_rank_is_replaced_and_the_run_goes_on_from_its_checkpoint(workplace: Path, tmp_path: Path) -> None:
    steps = 120
    config = write_config(workplace, "lost", max_steps=steps, epochs=20.0, batch={"global": 4, "micro": 1})
    process = gemfleet(workplace, tmp_path, "train", config)
    registry = wait_for_step(tmp_path, 9)
    (run,) = registry.list_runs()
    os.kill(registry.ranks(run.id)[1]["pid"], signal.SIGKILL)
    ends(process)
    assert states(registry, run.id)[-4:] == ["restarting", "training", "publishing", "succeeded"]
    assert re.search(r"resumed from checkpoint-\d+ at step \d+ of 120", logs(tmp_path, run.id))
    assert devices(tmp_path, run.id) == {"0": "cuda:0", "1": "cuda:1"}


@pytest.mark.usefixtures("two_gpus")
def test_no_gpu_is_used_where_none_is_asked_for(workplace: Path, tmp_path: Path) -> None:
    config = write_config(workplace, "none", cluster={"gpus_per_worker": 0, "workers": 1})
    ends(gemfleet(workplace, tmp_path, "train", config))
    (run,) = RunRegistry(tmp_path / "gemfleet.db").list_runs()
    assert devices(tmp_path, run.id) == {"0": "cpu"}


@pytest.mark.usefixtures("two_gpus")
def test_gpus_that_cuda_cannot_use_end_the_run_before_it_starts(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NULLGPU_UNUSABLE", "1")
    told = ends(gemfleet(workplace, tmp_path, "train", write_config(workplace, "old")), code=2)
    assert "Traceback" not in told
    assert "driver" in told
