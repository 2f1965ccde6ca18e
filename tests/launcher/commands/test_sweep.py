"""`gemfleet sweep` before anything starts, and what other commands make of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.launcher.cli import app
from gemfleet.launcher.runs.registry import registry_of
from gemfleet.launcher.runs.sweeps import stop_asked
from gemfleet.train.errors import UserError
from support.servers.api_live import add_sweep
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer
from typer.testing import CliRunner

RANKS = "--grid train.lora.r=4,8"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    save_tiny_gemma3(folder / "model")
    tiny_tokenizer(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(20)))
    return folder


@pytest.fixture
def config(folder: Path, gemfleet_home: Path) -> Path:
    train = {"model": str(folder / "model"), "data": {"train": str(folder / "rows.jsonl"), "max_length": 64}}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"train": train}))
    return path


@pytest.fixture
def registry(gemfleet_home: Path) -> RunRegistry:
    registry = registry_of(gemfleet_home)
    add_sweep(registry, gemfleet_home)
    return registry


def run(*arguments: str) -> str:
    pytest.importorskip("optuna", reason="needs the sweep extra")
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


REFUSALS = [
    (f"{RANKS} --set train.adapter=latest", "train.adapter is latest, which changes during a sweep"),
    (f"{RANKS} --set train.adapter=nothing", "'nothing', which is no "),
    ("", "a sweep has nothing to try; give --grid"),
    ("--grid train.lora.r", "--grid 'train.lora.r': give FIELD=V1,V2"),
    ("--grid train.lora.r=4,4", "4 is there twice"),
    (f"{RANKS} --uniform train.lora.r=1:4 --random 3", "train.lora.r is swept twice"),
    ("--uniform train.lora.r=4:8", "say how many trials to draw"),
    ("--loguniform train.lora.r=0:8 --random 3", "give 0 < LOW < HIGH"),
    ("--uniform train.lora.r=a:8 --random 3", "give two numbers LOW:HIGH"),
    ("--uniform train.lora.dropout=0.0:1.5 --random 3", "train.lora.dropout=1.5 cannot be swept: "),
    ("--grid train.lora.r=4,x", "train.lora.r=\"x\" cannot be swept: train.lora.r: found 'x'; give a whole number"),
    ("--grid train.lora.rank=4,8", "train.lora.rank=4 cannot be swept: train.lora.rank: unknown key"),
    ("--grid train.strategy=ddp,deepspeed --grid train.quantization=none,int4", "the trial with train.strategy=\"deep"),
    ("--grid name=a,b", "name is one for all trials of a sweep; give it by --set name=VALUE"),
    ("--grid train.model=demo,./nowhere", "train.model is 'nowhere', which is not a folder"),
    (f"{RANKS} --set train.data.eval_fraction=0", "--set train.data.eval_fraction=0.1"),
    (f"{RANKS} --metric eval_chat_loss", "is no evaluation loss of this configuration; give one of eval_loss"),
    (f"{RANKS} --prune", "train.evaluation.every is epoch and train.epochs 1; give a number of steps"),
    (f"{RANKS} --set output.deliver={{type:git,repository:x}}", "output.deliver"),
    (f"{RANKS} --id a/b", "--id 'a/b' is no id for a sweep"),
    (f"--random 1001 {RANKS}", "the sweep has 1001 trials; give at most 1000"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "said"), REFUSALS)
def test_what_cannot_be_swept_is_one_sentence_and_leaves_nothing(
    config: Path, gemfleet_home: Path, options: str, said: str
) -> None:
    with pytest.raises(UserError) as refused:
        run("sweep", str(config), *options.split())
    assert said in str(refused.value)
    assert not (gemfleet_home / "sweeps").exists()


def test_a_dry_run_prints_the_trials(config: Path, gemfleet_home: Path) -> None:
    command = ["sweep", str(config), "--grid", "train.lora.target_modules=all-linear,[q_proj, v_proj]", *RANKS.split()]
    shown = run(*command, "--dry-run")
    assert "4 trials would be started" in shown
    found = json.loads(run(*command, "--dry-run", "--json"))
    assert [trial["train.lora.r"] for trial in found["trials"]] == ["4", "8", "4", "8"]
    assert found["trials"][2]["train.lora.target_modules"] == '["q_proj", "v_proj"]'
    assert not (gemfleet_home / "sweeps").exists()


def test_a_sweep_is_shown_and_stopped_though_its_process_is_gone(registry: RunRegistry, gemfleet_home: Path) -> None:
    assert "sweep lr: interrupted, 4 of 6 trials have ended (2 succeeded, 1 pruned, 1 failed)" in run("runs")
    assert json.loads(run("runs", "--json"))[0]["sweep"] == "lr"
    assert json.loads(run("show", "lr", "--json"))["best"] == "lr-002"
    assert "lr-001" in run("show", "lr-001")  # a trial is a run
    run("stop", "lr")
    assert stop_asked(gemfleet_home, "lr")
    assert registry.stop_requested("lr-004")
    assert "3 trials are left" in run("resume", "lr", "--dry-run")
    with pytest.raises(UserError, match="leave out --set"):
        run("resume", "lr", "--set", "train.epochs=2")
