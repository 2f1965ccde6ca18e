"""`python -m train` and `torchrun -m train` as a person runs them, with a tiny model and with the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.device import abilities
from gemfleet.train.entry import main
from gemfleet.train.local.source import prepare_local
from support.places import REPOSITORY
from support.python_environment import python_with_dependencies
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.slow
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_tiny_gemma3(folder / "model")
    tiny_tokenizer(folder / "model")
    rows = [{"prompt": f"question {i} what ", "completion": f"answer {i % 7} cat"} for i in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {
        "model": str(folder / "model"),
        "data": {"train": str(folder / "rows.jsonl"), "max_length": 64},
        "batch": {"global": 6},
        "optim": {"learning_rate": 1e-2},
        "precision": "fp32",
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"train": train, "cluster": {"workers": 2}}))
    return path


def train(launcher: list[str], config: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    """Run it from the repository; the log history of its last checkpoint."""
    command = [sys.executable, *launcher, "-m", "train", str(config), "--out", str(out), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    newest = max(out.glob("checkpoints/checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    assert f"adapter: {newest}" in done.stdout
    history: list[dict[str, Any]] = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return history


def test_a_gpu_that_torch_cannot_use_is_an_error(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(abilities, "_gpus_of_the_driver", lambda: 2)
    assert main([str(config)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: the driver shows 2 GPUs on this machine, but torch ")
    assert "hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU" in told


def test_one_process_and_two_under_torchrun_learn_the_same(config: Path, tmp_path: Path) -> None:
    one = train([], config, tmp_path / "one")
    two = train(TORCHRUN, config, tmp_path / "two")
    for name in ("loss", "eval_loss"):
        assert [e["step"] for e in two if name in e] == [e["step"] for e in one if name in e]
        losses = [[entry[name] for entry in history if name in entry] for history in (one, two)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert sum("loss" in entry for entry in one) == 5


@pytest.mark.long
def test_strategies_learn_the_same_alone_and_under_torchrun(config: Path, tmp_path: Path) -> None:
    """`auto` is settled before anything is loaded, the same on both ranks."""
    slowly = ["--set", "train.optim.learning_rate=1e-3"]
    auto, fsdp2 = ["--set", "train.strategy=auto"], ["--set", "train.strategy=fsdp2"]
    zero3 = ["--set", "train.strategy=deepspeed", "--set", "train.deepspeed.stage=3"]
    expected = [
        entry["loss"] for entry in train(TORCHRUN, config, tmp_path / "auto", *slowly, *auto) if "loss" in entry
    ]
    (trained,) = (tmp_path / "auto").rglob("checkpoint-5/training_config.json")
    assert json.loads(trained.read_text())["train"]["strategy"] == "ddp"
    for number, (launcher, strategy) in enumerate([(TORCHRUN, fsdp2), ([], zero3)]):
        history = train(launcher, config, tmp_path / str(number), *slowly, *strategy)
        assert [entry["loss"] for entry in history if "loss" in entry] == pytest.approx(expected, abs=1e-4)


def test_it_goes_on_from_where_it_was(config: Path, tmp_path: Path) -> None:
    whole = train([], config, tmp_path / "whole", "--set", "train.epochs=2")
    train([], config, tmp_path / "parts", "--set", "train.epochs=2", "--set", "train.max_steps=4")
    # The schedule spans the steps asked for, so the parts take other learning rates; the history must have no gap.
    parts = train([], config, tmp_path / "parts", "--set", "train.epochs=2", "--resume")
    assert [e["step"] for e in parts if "loss" in e] == [e["step"] for e in whole if "loss" in e] == [*range(1, 11)]


@pytest.mark.long
def test_a_micro_batch_found_by_probes_changes_no_loss(config: Path, tmp_path: Path) -> None:
    histories = [
        train([], config, tmp_path / "1", "--set", "train.batch.micro=1"),
        train([], config, tmp_path / "2", "--set", "train.batch.micro=2"),
        train([], config, tmp_path / "4", "--set", "train.batch.micro=4"),
        train(
            TORCHRUN, config, tmp_path / "probes", "--set", "train.batch.micro=probe", "--set", "train.strategy=auto"
        ),
    ]
    losses = [[entry["loss"] for entry in history if "loss" in entry] for history in histories]
    assert len(losses[0]) == 5
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-4)


def test_what_a_person_can_put_right_is_one_line_and_code_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(config), "--set", "train.lora.rr=8"]) == 2
    assert "did you mean `r`" in capsys.readouterr().err
    assert main([str(config.parent / "nowhere.yaml")]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_a_loss_that_is_not_a_number_is_one_line_and_code_1(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")  # which the command would leave behind in this process
    changes = ["train.optim.learning_rate=1.0e+30", "train.optim.warmup_ratio=0.0"]
    options = [part for change in changes for part in ("--set", change)]
    assert main([str(config), "--out", str(tmp_path / "out"), *options]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "error: training failed: step 2: the loss is nan" in line


def test_a_checkout_that_is_not_installed_trains_the_full_example(config: Path, tmp_path: Path) -> None:
    python = python_with_dependencies(tmp_path / "python")
    model, rows = config.parent / "model", config.parent / "rows.jsonl"
    changes = [f"train.model={model}", f"train.data.train={rows}", "train.max_steps=1", "train.data.max_length=64"]
    out = ["--out", str(tmp_path / "out")]
    command = [str(python), "-m", "train", "examples/full.yaml", *out, *(f"--set={change}" for change in changes)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first == (
        "examples/full.yaml: only `train` counts here; "
        "`name`, `cluster`, `output`, `predict`, `trackers`, `notify` and `api` are left to `gemfleet train`"
    )
    assert last.startswith("1 steps; ")
    installed = subprocess.run(
        [str(python), "-c", "import gemfleet.train"], cwd=tmp_path, check=False, stderr=subprocess.DEVNULL
    )
    assert installed.returncode != 0


@pytest.mark.long
def test_the_real_adapter_has_its_loss_on_the_plain_model(demo_model: Path, tmp_path: Path) -> None:
    """Loaded by peft onto transformers' own model in fp32, one document at a time."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = {
        "model": str(demo_model),
        "data": {"train": "demo", "max_length": 128, "limit": 60, "eval_fraction": 0.2},
        "batch": {"global": 8},
        "optim": {"learning_rate": 1e-3, "schedule": "constant", "warmup_ratio": 0.0},
        "precision": "fp32",
        "max_steps": 4,
    }
    path = tmp_path / "real.yaml"
    path.write_text(yaml.safe_dump({"train": settings}))
    evaluations = [e["eval_loss"] for e in train([], path, tmp_path / "out") if "eval_loss" in e]
    assert evaluations[-1] < 0.9 * evaluations[0]

    adapter = tmp_path / "out" / "checkpoints" / "checkpoint-4"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32), adapter)
    assert plain_loss(
        model.eval(), TrainConfig.model_validate(settings), AutoTokenizer.from_pretrained(demo_model)
    ) == (pytest.approx(evaluations[-1], abs=1e-3))


@torch.no_grad()
def plain_loss(model: Any, config: TrainConfig, tokenizer: Any) -> float:
    """Mean cross-entropy over the supervised tokens of the evaluation set."""
    source, _ = prepare_local(config.data, config.batch.global_, config.seed, tokenizer, world_size=1)
    rows, start, total = source.eval_rows(0, *source.eval_sets), 0, 0.0
    for length in rows.document_lengths:
        tokens = torch.tensor(rows.tokens[start : start + length]).long()
        targets = torch.where(torch.tensor(rows.supervised[start : start + length]), tokens, -100)
        logits = model(input_ids=tokens[None]).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, targets[1:], reduction="sum"))
        start += length
    return total / rows.supervised_tokens
