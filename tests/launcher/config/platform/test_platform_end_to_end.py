"""The platform's request from its repositories to the pushed result, on a local Ray cluster with two ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from support.platform_run import (
    BRANCH,
    check_board,
    check_layout,
    check_loads,
    check_predictions,
    fresh_clone,
    gemfleet,
    make_remote,
    request_for,
)
from support.sources_on_disk import git, needs_git
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer

pytestmark = [needs_git, pytest.mark.slow]


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    save_tiny_gemma3(folder / "model-files")
    tiny_tokenizer(folder / "model-files")
    return make_remote(folder, folder / "model-files")


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
    return fresh_clone(remote, "result", BRANCH, tmp_path_factory.mktemp("clones"))


def test_warnings_are_told_and_the_branch_is_named_after_the_experiment(
    finished: tuple[Path, str], remote: Path
) -> None:
    output = finished[1]
    assert "per_device_train_batch_size is 4" in output
    assert "fp16, which Gemma 3's activations overflow" in output
    assert "delivered to file://" in output
    assert git(remote / "result.git", "branch", "--list").split() == [BRANCH]


def test_a_fresh_clone_has_the_layout(finished: tuple[Path, str], clone: Path) -> None:
    check_layout(clone, (finished[0] / "request.json").read_bytes(), finished[0])


def test_peft_and_transformers_load_the_clone(clone: Path, remote: Path, tmp_path: Path) -> None:
    check_loads(clone, fresh_clone(remote, "model", None, tmp_path))


def test_tensorboard_opens_the_clone_with_loss_points(clone: Path) -> None:
    check_board(clone)


def test_predictions_cover_the_evaluation_split(clone: Path) -> None:
    check_predictions(clone)


def test_a_delivery_that_failed_is_made_up_for(finished: tuple[Path, str], remote: Path) -> None:
    hook = remote / "result.git" / "hooks" / "pre-receive"
    git(remote / "result.git", "branch", "-D", BRANCH)
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    refused = gemfleet(finished[0], remote, "push", "latest")
    assert refused.returncode == 1
    assert "failed 3 times" in refused.stderr
    hook.unlink()
    assert "delivered to" in gemfleet(finished[0], remote, "push", "latest").stdout
    assert git(remote / "result.git", "branch", "--list").split() == [BRANCH]


@pytest.mark.long
def test_without_training_the_base_is_scored_and_answers(
    finished: tuple[Path, str], clone: Path, remote: Path, tmp_path: Path
) -> None:
    """`do_train: false`: the same evaluation set and loss as the trained run's before its first step."""
    request = request_for(remote) | {"experiment_name": "base-only"}
    request["train_model_parameters"] |= {"do_train": False, "auto_find_batch_size": False}
    (tmp_path / "request.json").write_text(json.dumps(request), encoding="utf-8")
    changes = ["--set", "cluster.address=local", "--set", "cluster.workers=2", "--set", "predict.max_new_tokens=8"]
    done = gemfleet(tmp_path, remote, "train", "request.json", *changes)
    assert done.returncode == 0, done.stderr
    assert "after 0 of 0 steps" in done.stdout
    result = fresh_clone(remote, "result", "base-only", tmp_path / "clones")
    names = {"README.md", ".gitattributes", "cheetah-fine-tuning-config.json", "predictions.jsonl", "metrics.json"}
    assert {path.name for path in result.iterdir()} == names
    metrics = check_predictions(result)
    history = json.loads((clone / "trainer_state.json").read_text())["log_history"]
    before = next(entry["eval_loss"] for entry in history if "eval_loss" in entry)
    assert math.log(metrics["perplexity"]) == pytest.approx(before, abs=1e-3)
    assert str(tmp_path) not in (result / "README.md").read_text()
