"""The platform's request from its repositories to the pushed result, on a local Ray cluster with two ranks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gemfleet.launcher.sources.address import ROOTS_VARIABLE, check_address
from gemfleet.launcher.sources.checkout import fetch_repository
from platform_requests import supported_request
from sources_on_disk import bare_repository, commit_folder, git, needs_git
from tiny_model import save_tiny_gemma3
from tiny_tokenizer import tiny_tokenizer

pytestmark = [needs_git, pytest.mark.slow]
KOREAN = Path(__file__).resolve().parents[2] / "examples" / "data" / "korean-finance.jsonl"
LFS = ("*.safetensors", "tokenizer.json")


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bare repositories of a tiny model and of the Korean questions; the result's is empty."""
    folder = tmp_path_factory.mktemp("remote")
    save_tiny_gemma3(folder / "model-files")
    tiny_tokenizer(folder / "model-files")
    commit_folder(folder / "model-files", bare_repository(folder / "model.git"), LFS)
    (folder / "data-files").mkdir()
    shutil.copyfile(KOREAN, folder / "data-files" / "train.jsonl")
    commit_folder(folder / "data-files", bare_repository(folder / "data.git"))
    bare_repository(folder / "result.git")
    return folder


def request_for(remote: Path) -> dict[str, Any]:
    """The reference request with its repositories replaced."""
    request = supported_request()
    request["model"]["model_repository"] = f"file://{remote}/model.git"
    request["dataset"]["dataset_repository"] = f"file://{remote}/data.git"
    request["save_model"]["model_repository"] = f"file://{remote}/result.git"
    return request


def gemfleet(work: Path, remote: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "GEMFLEET_HOME": str(work / "home"),
        ROOTS_VARIABLE: str(remote),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "gemfleet.launcher.cli", *arguments]
    return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=400, check=False)


@pytest.fixture(scope="module")
def finished(remote: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder where the request was trained, and what the command wrote."""
    work = tmp_path_factory.mktemp("work")
    (work / "request.json").write_text(json.dumps(request_for(remote), indent=1), encoding="utf-8")
    changes = ["--set", "cluster.address=local", "--set", "cluster.workers=2", "--set", "predict.max_new_tokens=8"]
    done = gemfleet(work, remote, "train", "request.json", *changes)
    assert done.returncode == 0, done.stderr
    return work, done.stdout + done.stderr


@pytest.fixture(scope="module")
def clone(finished: tuple[Path, str], remote: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ROOTS_VARIABLE, str(remote))
        address = check_address(f"file://{remote}/result.git", "caost-test-2")
        return fetch_repository(address, tmp_path_factory.mktemp("clones"))


def test_warnings_are_told_and_the_branch_is_named_after_the_experiment(
    finished: tuple[Path, str], remote: Path
) -> None:
    output = finished[1]
    assert "per_device_train_batch_size is 4" in output
    assert "fp16, which Gemma 3's activations overflow" in output
    assert "delivered to file://" in output
    assert git(remote / "result.git", "branch", "--list").split() == ["caost-test-2"]


def test_a_fresh_clone_has_the_layout(finished: tuple[Path, str], clone: Path) -> None:
    names = {path.name for path in clone.iterdir()}
    assert names >= {
        *(".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"),
        *("tokenizer_config.json", "special_tokens_map.json", "training_config.json", "runs", "loss.svg"),
        *("cheetah-fine-tuning-config.json", "predictions.jsonl", "metrics.json"),
    }
    (checkpoint,) = clone.glob("checkpoint-*")
    assert (checkpoint / "optimizer.safetensors").is_file()
    given = (finished[0] / "request.json").read_bytes()
    assert (clone / "cheetah-fine-tuning-config.json").read_bytes() == given
    card = (clone / "README.md").read_text(encoding="utf-8")
    assert "More Information Needed" not in card
    assert "tokens per second, all ranks" in card
    leaks = [p for p in clone.rglob("*") if p.is_file() and str(finished[0]).encode() in p.read_bytes()]
    assert leaks == []
    train = json.loads((clone / "training_config.json").read_text())["train"]
    assert train["batch"]["global"] == 16


def test_peft_and_transformers_load_the_clone(clone: Path, remote: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoTokenizer, Gemma3ForCausalLM, TrainerState

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ROOTS_VARIABLE, str(remote))
        base = fetch_repository(check_address(f"file://{remote}/model.git"), tmp_path)
    model = PeftModel.from_pretrained(Gemma3ForCausalLM.from_pretrained(base), clone)
    assert any(float(p.abs().max()) > 0 for name, p in model.named_parameters() if "lora_B" in name)
    assert AutoTokenizer.from_pretrained(clone).padding_side == "right"
    (checkpoint,) = clone.glob("checkpoint-*")
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    losses = [entry for entry in state.log_history if "loss" in entry]
    assert len(losses) == state.global_step == 12
    assert [entry["step"] for entry in losses if "mean_loss" in entry] == [12]
    assert [entry["step"] for entry in state.log_history if "eval_loss" in entry] == [0, 12]


def test_tensorboard_opens_the_clone_with_loss_points(clone: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (clone / "runs").iterdir()
    board = EventAccumulator(str(folder))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 13))
    assert len(board.Scalars("train/mean_loss")) == 1


def test_predictions_cover_the_evaluation_split(clone: Path) -> None:
    rows = [json.loads(line) for line in (clone / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = json.loads((clone / "metrics.json").read_text())
    assert metrics["examples"] == len(rows) == 21
    assert set(metrics) == {"examples", "chrf", "rouge_l", "exact_match", "perplexity"}
    texts = {json.loads(line)["text"] for line in KOREAN.read_text(encoding="utf-8").splitlines()}
    answers = {text.partition("<start_of_turn>model\n")[2].removesuffix("<end_of_turn>") for text in texts}
    assert {row["reference"] for row in rows} <= answers


def test_a_delivery_that_failed_is_made_up_for(finished: tuple[Path, str], remote: Path) -> None:
    hook = remote / "result.git" / "hooks" / "pre-receive"
    git(remote / "result.git", "branch", "-D", "caost-test-2")
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    refused = gemfleet(finished[0], remote, "push", "latest")
    assert refused.returncode == 1
    assert "failed 3 times" in refused.stderr
    hook.unlink()
    assert "delivered to" in gemfleet(finished[0], remote, "push", "latest").stdout
    assert git(remote / "result.git", "branch", "--list").split() == ["caost-test-2"]
