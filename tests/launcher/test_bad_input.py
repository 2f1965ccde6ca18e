"""Bad input through the real command line: one clear sentence, exit code 2, and nothing left running."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from gemfleet.launcher.shadowing import shadowing_files
from tiny_model import save_tiny_gemma3
from tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_gemma3(folder)
    tiny_tokenizer(folder)
    return folder


def refused(folder: Path, train: dict[str, object], cluster: dict[str, object] | None = None) -> str:
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
    return sentence


def test_missing_data_file(tmp_path: Path, model: Path) -> None:
    sentence = refused(tmp_path, {"model": str(model), "data": {"train": "./nowhere.jsonl"}})
    assert "nowhere.jsonl" in sentence


def test_unknown_column_and_model_without_weights(tmp_path: Path, model: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    sentence = refused(tmp_path, {"model": str(model), "data": {"train": "rows.jsonl", "format": "prompt_completion"}})
    assert "prompt" in sentence
    assert "question" in sentence
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "gemma3_text"}')
    sentence = refused(tmp_path, {"model": "./bare", "data": {"train": "rows.jsonl"}})
    assert "no *.safetensors weights" in sentence


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
    assert "torch.py, which Ray workers would import in place of" in refused(tmp_path, train)


def test_only_real_shadows_are_named(tmp_path: Path) -> None:
    for harmless in ("train.py", "launcher/__init__.py", "cluster/__init__.py", "test/__init__.py", "datasets/a.csv"):
        (tmp_path / harmless).parent.mkdir(exist_ok=True)
        (tmp_path / harmless).touch()
    assert shadowing_files(tmp_path) == []
    for shadow in ("transformers/__init__.py", "json.py", "gemfleet/train/loop.py"):
        (tmp_path / shadow).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / shadow).touch()
    assert [str(path) for path in shadowing_files(tmp_path)] == ["gemfleet", "json.py", "transformers"]
