"""The proof for GPUs, as far as a CPU can run it: parts pass what is right, fail what is wrong, and none is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gemfleet.benchmarks.__main__ import main
from gemfleet.benchmarks.gpu_proof import runner, wheels
from gemfleet.benchmarks.gpu_proof.checks import Findings
from gemfleet.benchmarks.gpu_proof.registry import PARTS
from gemfleet.benchmarks.gpu_proof.results import Result
from gemfleet.benchmarks.gpu_proof.stage import Stage
from gemfleet.benchmarks.shared.record import read_records
from gemfleet.train.kernels.block_attention import block_attention
from gemfleet.train.kernels.loss import SupervisedCrossEntropy
from gemfleet.train.strategies.ddp import DdpStrategy
from support.places import REPOSITORY

ON_A_CPU = ("device", "step", "attention", "resume", "strategies", "speed-1b", "layers", "vocabulary", "quantised")
ON_A_GPU = ("memory", "plan", "liger")


@pytest.mark.slow
def test_all_parts_that_a_cpu_can_run_pass_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "all.tar.gz"
    out, parts = tmp_path / "out", (*ON_A_CPU, *ON_A_GPU)
    options = ["--device", "cpu", "--quick", "--minutes", "14", "--parts", ",".join(parts), "--archive", str(archive)]
    assert main(["gpu-proof", *options, "--out", str(out)]) == 0, capsys.readouterr().out
    verdicts = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["results"]
    assert verdicts == dict.fromkeys(ON_A_CPU, "passed") | dict.fromkeys(ON_A_GPU, "skipped")
    records = {record.case: record for record in read_records(out)}
    assert records.keys() == {*parts, "summary"}
    judged = [check for check in records["strategies"].results["checks"] if check["bound"] is not None]
    assert len(judged) == 6 * 5  # figures of each strategy that a CPU can run
    (speed,) = records["speed-1b"].results["figures"].values()
    assert speed["raw_tokens_per_second"] >= speed["tokens_per_second"] > speed["supervised_tokens_per_second"] > 0
    assert "| 1b, 1 rows, eager |" in (out / "gpu-proof-summary.md").read_text()
    with tarfile.open(archive) as file:
        assert "out/gpu-proof-summary.md" in file.getnames()


def prove(part: str, folder: Path, numbers: bool = True) -> Stage:
    stage = Stage(numbers, folder=folder, quick=True)
    PARTS[part].prove(stage)
    return stage


def failed(stage: Stage) -> list[str]:
    return [check.name for check in stage.checks if check.verdict == "failed"]


def test_a_window_of_one_token_too_many_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemfleet.train.kernels import attention

    right = block_attention

    def wider(query: Any, key: Any, value: Any, lengths: Any, scaling: float, window: int | None) -> Any:
        return right(query, key, value, lengths, scaling, window and window + 1)

    monkeypatch.setattr(attention, "block_attention", wider)
    stage = prove("attention", tmp_path)
    assert failed(stage) == [check.name for check in stage.checks if "no window" not in check.name]
    assert {check.verdict for check in prove("attention", tmp_path, numbers=False).checks} == {"not compared"}


def test_a_loss_that_drops_its_last_position_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = SupervisedCrossEntropy.__call__
    monkeypatch.setattr(SupervisedCrossEntropy, "__call__", lambda loss, h, t: right(loss, h[:-1], t[:-1]))
    assert len(failed(prove("vocabulary", tmp_path))) == 4


@pytest.mark.slow
def test_a_resume_that_forgets_adamw_s_state_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = DdpStrategy.restore

    def halved(strategy: DdpStrategy, adapter: Any, optimizer: Any) -> None:
        right(strategy, adapter, {name: value / 2 for name, value in optimizer.items()})

    monkeypatch.setattr(DdpStrategy, "restore", halved)
    assert failed(prove("resume", tmp_path)) == ["fp32: restored optimizer", "fp32: adapters at the end"]


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
    tell(event="begin", part=part)
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


def test_every_part_is_imported_without_ray() -> None:
    modules = [f"gemfleet.benchmarks.gpu_proof.parts.{part.module or part.name}" for part in PARTS.values()]
    modules += ["gemfleet.benchmarks.gpu_proof.suite", "gemfleet.benchmarks.gpu_proof.child"]
    program = f"import sys; sys.modules['ray'] = None\nimport {', '.join(modules)}"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


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
