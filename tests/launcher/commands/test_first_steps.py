"""What a new user meets first: help, version, completion, a first file, and an editor that knows the keys."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.launcher.cli import app, main
from gemfleet.launcher.commands import init as init_command
from gemfleet.launcher.commands.schema import config_schema
from gemfleet.launcher.config.load import load_config
from support.places import EXAMPLES
from typer.main import get_command
from typer.testing import CliRunner

FILES = sorted(EXAMPLES.glob("*.yaml"))
COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


def output_of(*arguments: str, text: str | None = None) -> str:
    result = CliRunner().invoke(app, list(arguments), input=text, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["gemfleet", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    return capsys.readouterr().err


def test_version() -> None:
    from importlib.metadata import version

    assert output_of("--version") == f"gemfleet {version('gemfleet')}\n"


@pytest.mark.parametrize(
    "command", ["", *(name for name in COMMANDS if name != "bench"), "cluster up", "batch-cache list"]
)
def test_help_in_short(command: str) -> None:
    assert output_of(*command.split(), "-h") == output_of(*command.split(), "--help")


def test_a_shell_completes_commands_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A test run in the background has no shell above it.
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    registry = RunRegistry(tmp_path / "gemfleet.db")
    for name in ("alpha-1", "alpha-2", "beta-1"):
        registry.create_run(name, "x", "{}", os.getpid())
    assert "_GEMFLEET_COMPLETE" in output_of("--show-completion")

    def completed(words: str) -> list[str]:
        environment = {**os.environ, "GEMFLEET_HOME": str(tmp_path), "_GEMFLEET_COMPLETE": "complete_bash"}
        environment |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        command = [Path(sys.executable).with_name("gemfleet")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.stdout.split()

    assert completed("gemfleet sh") == ["show"]
    assert completed("gemfleet show al") == ["alpha-2", "alpha-1"]
    assert completed("gemfleet logs la") == ["latest"]


def test_init_takes_flags_and_writes_what_train_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my first.yaml"
    flags = ("--model", "google/gemma-3-1b-it", "--data", "c: d#.jsonl", "--epochs", "3", "--workers", "4")
    output_of("init", str(file), *flags, "--global", "16", "--learning-rate", "1e-3", "--max-length", "512")
    config = load_config(file)
    assert (config.name, config.train.model, config.train.data.train) == (
        "my-first",
        "google/gemma-3-1b-it",
        "c: d#.jsonl",
    )
    assert (config.train.epochs, config.train.batch.global_, config.cluster.workers) == (3.0, 16, 4)
    assert (config.train.optim.learning_rate, config.train.data.max_length) == (1e-3, 512)
    lines = file.read_text().splitlines()
    assert lines[lines.index("    max_length: 512") - 1].strip().startswith("# tokens in a packed row")
    assert "is there already" in refused(monkeypatch, capsys, "init", str(file))
    output_of("init", str(file), "--force")
    assert load_config(file).train == load_config(file).train.model_validate(
        {"model": "demo", "data": {"train": "demo"}}
    )


def test_init_asks_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_command, "can_ask", lambda: True)
    asked = output_of("init", str(tmp_path / "run.yaml"), text="google/gemma-3-4b-it\nchats.jsonl\n")
    assert "Training data" in asked
    train = load_config(tmp_path / "run.yaml").train
    assert (train.model, train.data.train) == ("google/gemma-3-4b-it", "chats.jsonl")


def test_init_refuses_what_train_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    said = refused(monkeypatch, capsys, "init", str(file), "--epochs", "-3", "--workers", "many")
    assert f"{file} has 2 problems" in said
    assert "train.epochs: found -3.0" in said
    assert "make it first" in refused(monkeypatch, capsys, "init", str(tmp_path / "none" / "run.yaml"))
    assert "ends with .yaml" in refused(monkeypatch, capsys, "init", str(tmp_path / "run.json"))
    assert list(tmp_path.iterdir()) == []


def test_the_schema_takes_our_files_and_marks_mistakes() -> None:
    schema = config_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)

    def mistakes(content: Any) -> list[str]:
        return [".".join(map(str, error.path)) for error in validator.iter_errors(content)]

    for example in FILES:
        content = yaml.safe_load(example.read_text())
        if content["train"].get("activation_checkpointing") is False:
            content["train"]["activation_checkpointing"] = "off"  # as editors read it, by YAML 1.2
        assert mistakes(content) == [], example
    base = {"train": {"model": "demo", "data": {"train": "demo"}}}
    assert mistakes(base) == []
    assert mistakes({"train": {"model": "demo"}}) == ["train"]
    assert mistakes({**base, "cluster": {"workers": {"min": 2, "max": 8}, "gpu_kind": None}}) == []
    assert mistakes({**base, "cluster": {"workers": 0}}) == ["cluster.workers"]
    assert mistakes({**base, "clutser": {}}) == [""]
    for section, names in (("train", ("model", "batch", "strategy")), ("cluster", ("workers", "storage"))):
        properties = schema["properties"][section]  # type: ignore[index]
        defined = schema["$defs"][properties["$ref"].rpartition("/")[2]]["properties"]  # type: ignore[index]
        assert all(name in defined for name in names)
