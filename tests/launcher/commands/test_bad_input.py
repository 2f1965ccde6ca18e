"""Bad input through the real command line: one clear sentence, exit code 2, and nothing left running."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from gemfleet.launcher.submit.shadowing import shadowing_files
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_gemma3(folder)
    tiny_tokenizer(folder)
    return folder


def refused(folder: Path, train: Mapping[str, object], cluster: Mapping[str, object] | None = None) -> str:
    """The one sentence of `gemfleet train` on this configuration."""
    (folder / "run.yaml").write_text(yaml.safe_dump({"train": train, "cluster": cluster or {"address": "local"}}))
    environment = {**os.environ, "GEMFLEET_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gemfleet.launcher.cli", "train", "run.yaml"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert_nothing_runs(environment["GEMFLEET_HOME"])
    return sentence


def assert_nothing_runs(home: str, within_seconds: float = 30.0) -> None:
    """No process is left that was started for this home; Ray's last ones may take a moment to end."""
    deadline = time.monotonic() + within_seconds
    while left := processes_of(home):
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.2)


def processes_of(home: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"GEMFLEET_HOME={home}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip())
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return [command for command in found if command]


def test_missing_data_file(tmp_path: Path, model: Path) -> None:
    sentence = refused(tmp_path, {"model": str(model), "data": {"train": "./nowhere.jsonl"}})
    assert "nowhere.jsonl" in sentence


def test_unknown_column_and_model_without_weights(tmp_path: Path, model: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    sentence = refused(tmp_path, {"model": str(model), "data": {"train": "rows.jsonl", "format": "prompt_completion"}})
    assert "prompt" in sentence
    assert "question" in sentence
    (tmp_path / "rows.jsonl").write_text('{"text": "a cat"}\n')
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "gemma3_text"}')
    sentence = refused(tmp_path, {"model": "./bare", "data": {"train": "rows.jsonl"}})
    assert "no *.safetensors weights" in sentence


def test_a_data_set_without_rows(tmp_path: Path, model: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    sentence = refused(tmp_path, {"model": str(model), "data": {"train": "rows.jsonl"}})
    assert "rows.jsonl" in sentence
    assert "is empty" in sentence


def test_all_rows_longer_than_the_limit(tmp_path: Path, model: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a cat and a dog and a cat and a dog"}\n' * 3)
    sentence = refused(tmp_path, {"model": str(model), "data": {"train": "rows.jsonl", "max_length": 4}})
    assert "max_length" in sentence
    assert "3" in sentence


def test_too_few_resources(tmp_path: Path, model: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a cat"}\n' * 3)
    train = {"model": str(model), "data": {"train": "rows.jsonl"}}
    with local_ray(cpus=3, gpus=1) as address:
        asked = {"address": address, "workers": 3, "cpus_per_worker": 2, "wait_for_resources_s": 2}
        sentence = refused(tmp_path, train, {**asked, "gpus_per_worker": 0})
        more_than_gpus = refused(tmp_path, train, {"address": address, "workers": 2, "wait_for_resources_s": 0})
    assert "asked for 3 workers with 2 CPUs" in sentence
    assert "3 CPUs" in sentence
    assert "waited 2 s. Lower cluster.workers or cluster.cpus_per_worker, or add nodes" in sentence
    assert "asked for 2 workers with 1 CPU and 1 GPU each; 3 CPUs and 1 GPU are free" in more_than_gpus
    assert "Lower cluster.workers" in more_than_gpus


@contextmanager
def local_ray(cpus: int, gpus: int) -> Iterator[str]:
    """`gpus`: how many the cluster says it has; nothing gets as far as using one."""
    import ray

    context = ray.init(
        address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, object_store_memory=100 * 2**20
    )
    try:
        yield str(context.address_info["address"])
    finally:
        ray.shutdown()


def test_an_address_that_nobody_answers(tmp_path: Path, model: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a cat"}\n')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = time.monotonic()
    sentence = refused(tmp_path, {"model": str(model), "data": {"train": "rows.jsonl"}}, {"address": address})
    assert "nobody answers" in sentence
    assert address in sentence
    assert time.monotonic() - started < 120


def test_a_working_directory_that_shadows_what_workers_import(tmp_path: Path, model: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a cat"}\n')
    (tmp_path / "torch.py").write_text("# mine, but not torch\n")
    train = {"model": str(model), "data": {"train": "rows.jsonl"}}
    assert "torch.py, which ranks would import in place of" in refused(tmp_path, train)


def test_only_real_shadows_are_named(tmp_path: Path) -> None:
    for harmless in ("train.py", "launcher/__init__.py", "cluster/__init__.py", "test/__init__.py", "datasets/a.csv"):
        (tmp_path / harmless).parent.mkdir(exist_ok=True)
        (tmp_path / harmless).touch()
    assert shadowing_files(tmp_path) == []
    for shadow in ("transformers/__init__.py", "json.py", "gemfleet/train/loop.py"):
        (tmp_path / shadow).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / shadow).touch()
    assert [str(path) for path in shadowing_files(tmp_path)] == ["gemfleet", "json.py", "transformers"]
