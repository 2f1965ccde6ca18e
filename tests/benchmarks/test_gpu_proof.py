"""The proof for GPUs, as far as a CPU can run it: parts pass what is right, fail what is wrong, and none is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gemfleet.benchmarks.shared.record import read_records
from gemfleet.train.kernels.attention.blocks import block_attention
from gemfleet.train.kernels.loss import SupervisedCrossEntropy
from gemfleet.train.strategies.ddp import DdpStrategy
from gpu import test_attention, test_resume, test_vocabulary
from support.gpu_proof import runner, wheels
from support.gpu_proof.__main__ import main
from support.gpu_proof.findings import Findings
from support.gpu_proof.parts import PARTS
from support.gpu_proof.results import Book, Result
from support.gpu_proof.stage import Stage
from support.places import REPOSITORY, TESTS

ON_A_CPU = ("device", "step", "attention", "resume", "strategies", "speed-1b", "layers", "vocabulary", "quantised")
ON_A_GPU = ("memory", "plan", "liger")


@pytest.mark.long
def test_all_parts_that_a_cpu_can_run_pass_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = (*ON_A_CPU, *ON_A_GPU)
    options = ["--device", "cpu", "--quick", "--minutes", "14", "--parts", ",".join(parts)]
    assert main([*options, "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    verdicts = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["results"]
    assert verdicts == dict.fromkeys(ON_A_CPU, "passed") | dict.fromkeys(ON_A_GPU, "skipped")
    (record,) = read_records(tmp_path)
    assert record.command == "make gpu-proof ARGS='" + " ".join([*options, "--out", tmp_path.name]) + "'"
    found = record.results["parts"]
    assert found.keys() == set(parts)
    judged = [check for check in found["strategies"]["checks"] if check["bound"] is not None]
    assert len(judged) == 6 * 5  # figures of each strategy that a CPU can run
    (speed,) = found["speed-1b"]["figures"].values()
    rates = [speed[f"{kind}tokens_per_second"] for kind in ("raw_", "", "supervised_")]
    assert rates[0] >= rates[1]["median"] > rates[2] > 0
    assert "| 1b, 1 rows, eager |" in (tmp_path / "gpu-proof.md").read_text()


def prove(part: Any, folder: Path, numbers: bool = True) -> Stage:
    stage = Stage(numbers, folder=folder, quick=True)
    part(stage)
    return stage


def failed(stage: Stage) -> list[str]:
    return [check.name for check in stage.checks if check.verdict == "failed"]


def test_a_window_of_one_token_too_many_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemfleet.train.kernels.attention import packed as attention

    right = block_attention

    def wider(query: Any, key: Any, value: Any, lengths: Any, scaling: float, window: int | None, reach: Any) -> Any:
        return right(query, key, value, lengths, scaling, window and window + 1, reach)

    monkeypatch.setattr(attention, "block_attention", wider)
    stage = prove(test_attention.test_attention, tmp_path)
    assert failed(stage) == [check.name for check in stage.checks if "no window" not in check.name]
    assert {check.verdict for check in prove(test_attention.test_attention, tmp_path, numbers=False).checks} == {
        "not compared"
    }


def test_a_loss_that_drops_its_last_position_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = SupervisedCrossEntropy.__call__
    monkeypatch.setattr(SupervisedCrossEntropy, "__call__", lambda loss, h, t: right(loss, h[:-1], t[:-1]))
    assert len(failed(prove(test_vocabulary.test_vocabulary, tmp_path))) == 4


@pytest.mark.slow
def test_a_resume_that_forgets_adamw_s_state_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = DdpStrategy.restore

    def halved(strategy: DdpStrategy, adapter: Any, optimizer: Any) -> None:
        right(strategy, adapter, {name: value / 2 for name, value in optimizer.items()})

    monkeypatch.setattr(DdpStrategy, "restore", halved)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        stage = prove(test_resume.test_resume, tmp_path)
    finally:
        dist.destroy_process_group()
    assert failed(stage) == ["fp32: restored optimizer", "fp32: adapters at the end"]


def test_a_figure_is_at_most_its_bound_or_fails() -> None:
    found = Findings()
    for figure in (1.0, 1.0001, float("nan")):
        found.at_most("x", figure, 1.0)
    assert [check.verdict for check in found.checks] == ["passed", "failed", "failed"]
    result = Result("step", "ended", checks=found.checks)
    assert (result.verdict, result.good) == ("failed", False)


CHILD = """
import json, sys, time
def tell(**event): print(json.dumps(event), flush=True)
for part in sys.argv[1:]:
    tell(event="begin", function="test_" + part)
    tell(event="check", check={"name": "first", "verdict": "passed"})
    if part == "step": sys.exit(7)
    if part == "attention": time.sleep(60)
    tell(event="end", error="KeyError: 'x'" if part == "resume" else None)
"""


def run_parts(names: Sequence[str], seconds: float, program: str = CHILD) -> tuple[list[Result], list[list[str]]]:
    started: list[list[str]] = []

    def start(parts: Sequence[str]) -> subprocess.Popen[str]:
        started.append(list(parts))
        return subprocess.Popen([sys.executable, "-c", program, *parts], stdout=subprocess.PIPE, text=True)

    return runner.prove_all(names, start, time.monotonic() + seconds, lambda result: None), started


def test_a_part_that_dies_or_hangs_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "attention", PARTS["attention"].__class__("attention", 0.5, "?"))
    names = ["device", "step", "attention", "resume", "plan"]
    results, started = run_parts(names, 30.0)
    assert [result.verdict for result in results] == ["passed", "crashed", "timed out", "failed", "passed"]
    assert started == [names, names[2:], names[3:]]
    assert all(len(result.checks) == 1 for result in results)
    assert results[1].error == "the process ended with code 7"


def test_what_the_time_does_not_reach_is_said() -> None:
    results, _ = run_parts(["device", "attention", "resume"], 1.5)
    assert [result.verdict for result in results] == ["passed", "timed out", "not reached"]
    results, started = run_parts(["device", "step"], 30.0, "raise SystemExit(9)")
    assert [(result.verdict, result.error) for result in results] == [
        ("not reached", "the process ended with code 9 at its start")
    ] * 2
    assert len(started) == 1


def test_every_finding_is_kept_and_what_was_not_run_is_said(tmp_path: Path) -> None:
    book = Book(tmp_path, {"parts": ["device", "step", "plan"]}, "make gpu-proof")
    running = Result("device")
    running.take({"event": "check", "check": {"name": "first", "verdict": "passed"}})
    book.keep(running)
    (record,) = read_records(tmp_path)
    found = record.results["parts"]
    assert {part: found[part]["verdict"] for part in found} == {
        "device": "running",
        "step": "not reached",
        "plan": "not reached",
    }
    assert found["device"]["checks"][0]["name"] == "first"
    assert not record.results["passed"]
    assert (record.hardware["cpu"], record.command) != ("", "")


def test_every_part_is_a_test_that_is_imported_without_ray() -> None:
    modules = {f"gpu.{part.test.partition('.py')[0]}" for part in PARTS.values()}
    functions = [f"gpu.{part.test.partition('.py')[0]}.{part.function}" for part in PARTS.values()]
    program = (
        f"import sys; sys.modules['ray'] = None\nimport {', '.join(sorted(modules))}, support.gpu_proof.__main__\n"
    )
    done = [sys.executable, "-c", program + "\n".join(functions)]
    subprocess.run(done, check=True, capture_output=True, cwd=TESTS)


def test_the_proof_starts_from_a_bare_checkout(tmp_path: Path) -> None:
    command = [str(REPOSITORY / ".ci" / "gpu-proof"), "--device", "cpu", "--quick", "--parts", "vocabulary"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1])["results"] == {"vocabulary": "passed"}


def test_a_wheel_keeps_one_cuda(tmp_path: Path) -> None:
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    libraries = [f"bitsandbytes/libbitsandbytes_{kind}.so" for kind in ("cuda124", "cuda130", "rocm71", "cpu")]
    with zipfile.ZipFile(wheel, "w") as file:
        for name in libraries:
            file.writestr(name, "x" * 1000)
        file.writestr("bitsandbytes-1.dist-info/RECORD", "".join(f"{name},,\n" for name in libraries))
    wheels.keep_one_cuda(wheel, "130")
    with zipfile.ZipFile(wheel) as file:
        kept = [name for name in libraries if name in file.namelist()]
        assert file.read("bitsandbytes-1.dist-info/RECORD").decode() == "".join(f"{name},,\n" for name in kept)
    assert kept == [libraries[1], libraries[3]]
    with pytest.raises(SystemExit, match="no library for CUDA 140"):
        wheels.keep_one_cuda(wheel, "140")
    assert wheels.report(tmp_path) == 0
    with wheel.open("ab") as grown:
        grown.truncate(wheels.LIMIT + 1)
    assert wheels.report(tmp_path) == 1


def test_the_wheels_have_the_versions_that_are_tested() -> None:
    pins = wheels.pinned(REPOSITORY / "constraints.txt")
    assert set(wheels.PACKAGES) - pins.keys() <= {"liger_kernel"}
    assert pins["torch"] == torch.__version__.partition("+")[0]
