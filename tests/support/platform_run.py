"""The platform's request carried out on this machine: repositories on disk, the command, and a fresh clone's checks."""

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
from support.places import EXAMPLES
from support.platform_requests import supported_request
from support.sources_on_disk import bare_repository, commit_folder

KOREAN = EXAMPLES / "data" / "korean-finance.jsonl"
LFS = ("*.safetensors", "tokenizer.json")
BRANCH = "caost-test-2"


def make_remote(folder: Path, model_files: Path) -> Path:
    """Bare repositories of a model and of the Korean questions below `folder`; the result's is empty."""
    commit_folder(model_files, bare_repository(folder / "model.git"), LFS)
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


def gemfleet(work: Path, remote: Path, *arguments: str, timeout: float = 400.0) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "GEMFLEET_HOME": str(work / "home"),
        ROOTS_VARIABLE: str(remote),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "gemfleet.launcher.cli", *arguments]
    return subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def fresh_clone(remote: Path, name: str, branch: str | None, cache: Path) -> Path:
    """A repository below `remote` as somebody else would get it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ROOTS_VARIABLE, str(remote))
        return fetch_repository(check_address(f"file://{remote}/{name}.git", branch), cache)


def check_layout(clone: Path, request: bytes, work: Path) -> None:
    """What a published result holds, and that nothing in it names this machine's paths."""
    names = {path.name for path in clone.iterdir()}
    assert names >= {
        *(".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"),
        *("tokenizer_config.json", "special_tokens_map.json", "training_config.json", "runs", "loss.svg"),
        *("cheetah-fine-tuning-config.json", "predictions.jsonl", "metrics.json"),
    }
    (checkpoint,) = clone.glob("checkpoint-*")
    assert (checkpoint / "optimizer.safetensors").is_file()
    assert (clone / "cheetah-fine-tuning-config.json").read_bytes() == request
    card = (clone / "README.md").read_text(encoding="utf-8")
    assert "More Information Needed" not in card
    assert "tokens per second, all ranks" in card
    leaks = [p for p in clone.rglob("*") if p.is_file() and str(work).encode() in p.read_bytes()]
    assert leaks == []
    train = json.loads((clone / "training_config.json").read_text())["train"]
    assert train["batch"]["global"] == 16


def check_loads(clone: Path, base: Path) -> list[float]:
    """peft and transformers read the clone; returns the losses of its steps."""
    from peft import PeftModel
    from transformers import AutoTokenizer, Gemma3ForCausalLM, TrainerState

    model = PeftModel.from_pretrained(Gemma3ForCausalLM.from_pretrained(base), clone)
    assert any(float(p.abs().max()) > 0 for name, p in model.named_parameters() if "lora_B" in name)
    assert AutoTokenizer.from_pretrained(clone).padding_side == "right"
    (checkpoint,) = clone.glob("checkpoint-*")
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    losses = [entry for entry in state.log_history if "loss" in entry]
    assert len(losses) == state.global_step == 12
    assert [entry["step"] for entry in losses if "mean_loss" in entry] == [12]
    assert [entry["step"] for entry in state.log_history if "eval_loss" in entry] == [0, 12]
    return [entry["loss"] for entry in losses]


def check_board(clone: Path) -> None:
    """TensorBoard's own reader finds a point for each step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (clone / "runs").iterdir()
    board = EventAccumulator(str(folder))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(range(1, 13))
    assert len(board.Scalars("train/mean_loss")) == 1


def check_predictions(clone: Path) -> dict[str, float]:
    """They cover the evaluation split; returns their metrics."""
    rows = [json.loads(line) for line in (clone / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics: dict[str, float] = json.loads((clone / "metrics.json").read_text())
    assert metrics["examples"] == len(rows) == 21
    assert set(metrics) == {"examples", "chrf", "rouge_l", "exact_match", "perplexity"}
    texts = {json.loads(line)["text"] for line in KOREAN.read_text(encoding="utf-8").splitlines()}
    answers = {text.partition("<start_of_turn>model\n")[2].removesuffix("<end_of_turn>") for text in texts}
    assert {row["reference"] for row in rows} <= answers
    return metrics
