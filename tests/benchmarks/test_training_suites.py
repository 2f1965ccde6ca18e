"""The throughput and scaling suites on the tiny model: real processes, real records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gemfleet.benchmarks.__main__ import main
from gemfleet.benchmarks.shared.models import TINY
from gemfleet.benchmarks.shared.record import Record, read_records
from gemfleet.train.planning.counts import lora_parameters
from gemfleet.train.planning.flops import FlopCounter
from gemfleet.train.step.record import SUITE_FIGURES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def bench(home: Path, *arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMFLEET_HOME", str(home))
        return main(arguments)


def last_line(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_a_quick_throughput_run_counts_tokens_flops_and_waits(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(home, "throughput", "--quick", "--profile", "--out", str(tmp_path)) == 0
    assert last_line(capsys)["results"]["tiny-ddp-fp32-128x1-micro1-1rank"]["tokens_per_second"] > 0
    (record,) = read_records(tmp_path)
    run, found = record.runs[0], record.results
    assert run.tokens == [128] * 4
    assert run.facts["supervised_tokens"] == [64] * 4
    flops = FlopCounter(TINY, lora_parameters(TINY, 16, "all-linear")).count([64, 64], 64)
    assert run.facts["flops"] == [flops.model] * 4
    assert found["tokens_per_second"]["median"] == pytest.approx(2 * found["supervised_tokens_per_second"])
    assert 0 < found["mfu"] == found["hfu"] < 1
    assert found["mfu_basis"] == "measured ceiling"
    assert sum(run.facts["checkpoint_wait_seconds"]) > 0
    assert 0 < found["share_waiting_for_checkpoints"] < 1
    assert set(SUITE_FIGURES) <= set(found)
    assert found["padding_share"] == 0.0
    assert run.losses[-1] < run.losses[0]
    assert (tmp_path / "throughput.md").read_text().count("tiny-ddp-fp32") == 1
    assert "aten::" in next(tmp_path.glob("profile-*.operators.txt")).read_text()
    assert next(tmp_path.glob("profile-*.trace.json.gz")).stat().st_size > 1000


def test_two_workers_put_the_adapters_on_the_wire_and_wait_for_them(home: Path, tmp_path: Path) -> None:
    assert bench(home, "scaling", "--quick", "--modes", "weak", "--out", str(tmp_path)) == 0
    one, two = sorted(read_records(tmp_path), key=lambda record: int(record.config["ranks"]))
    assert one.results["wire_bytes_per_step"] == 0
    assert two.runs[0].tokens == [2 * one.runs[0].tokens[0]] * 4
    gradients = 4 * lora_parameters(
        TINY, 16, "all-linear"
    )  # one all-reduce in fp32: 2 (n - 1) / n of it from each rank
    assert gradients <= two.results["wire_bytes_per_step"] < 1.01 * gradients
    assert two.results["share_waiting_for_communication"] > 0
    assert "| weak | 2 |" in (tmp_path / "scaling.md").read_text()


def test_divided_strategies_are_measured_too(home: Path, tmp_path: Path) -> None:
    arguments = ("throughput", "--quick", "--strategies", "fsdp2", "--ranks", "2", "--out", str(tmp_path))
    assert bench(home, *arguments) == 0
    record: Record = read_records(tmp_path)[0]
    assert record.results["wire_bytes_per_step"] > 4 * lora_parameters(TINY, 16, "all-linear") / 2


def test_a_rank_that_dies_is_told_and_ends_the_other(home: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("gemfleet.benchmarks.training.case.model_folder", lambda *_: tmp_path / "nowhere")
    assert bench(home, "throughput", "--quick", "--ranks", "2", "--out", str(tmp_path)) == 1
    error = read_records(tmp_path)[0].runs[0].error
    assert error is not None
    assert "nowhere" in error
