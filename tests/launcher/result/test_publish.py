"""What is published: the layout, no pickles, a card that is filled in, and files that other libraries read."""

from __future__ import annotations

import json
import math
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from gemfleet.launcher.config.schema import OutputConfig
from gemfleet.launcher.result.card.loss_plot import loss_plot
from gemfleet.launcher.result.publish import REQUEST_FILE, Publication, publish
from gemfleet.train.checkpoint.state import Progress, save_checkpoint
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.recipe import LoraConfig
from gemfleet.train.model.gemma import attach_lora, load_base_model
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer

HISTORY = [
    {"epoch": 0.0, "step": 0, "eval_loss": 6.2, "eval_runtime": 0.1},
    {"epoch": 0.5, "step": 1, "loss": 6.1, "grad_norm": 1.0, "learning_rate": 1e-3},
    {"epoch": 1.0, "step": 2, "loss": 5.5, "grad_norm": 1.0, "learning_rate": 1e-4},
    {"epoch": 1.0, "step": 2, "eval_loss": 5.4, "eval_chat_loss": 5.3, "eval_my.code_loss": 5.5, "eval_runtime": 0.1},
]
FACTS = {"data": "git+https://host/rows.git#main", "ranks": "2 ranks", "device": "A CPU", "tokens_per_second": 1234.0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with one checkpoint of a tiny model, TensorBoard files, predictions and the request."""
    base = save_tiny_gemma3(tmp_path / "model")
    tiny_tokenizer(base)
    config = TrainConfig.model_validate({"model": str(base), "data": {"train": "rows.jsonl"}, "batch": {"micro": 1}})
    model = load_base_model(base, torch.float32, torch.device("cpu"))
    trainable = attach_lora(model, LoraConfig(r=2), 0, str(base))
    adapter = {name: parameter.detach() for name, parameter in trainable.adapter_parameters().items()}
    folder = tmp_path / "run"
    progress = Progress(step=2, epoch=1.0, total_steps=2, tokens_seen=4321, log_history=HISTORY)
    save_checkpoint(folder / "checkpoints" / "checkpoint-2", trainable, adapter, {"x": torch.ones(1)}, progress, config)
    (folder / "checkpoints" / "checkpoint-2" / "manifest.json").write_text("{}")
    (folder / "runs" / "Nov23_host").mkdir(parents=True)
    (folder / "runs" / "Nov23_host" / "events.out.tfevents.1.host").write_bytes(b"x")
    (folder / "predictions").mkdir()
    (folder / "predictions" / "predictions.jsonl").write_text('{"prompt": "a", "reference": "b", "prediction": "c"}\n')
    (folder / "predictions" / "metrics.json").write_text('{"examples": 1, "chrf": 12.5}')
    (folder / "config.json").write_bytes(b'{ "experiment_name":"x","trainer" : "sft"}\n')
    (folder / "config.resolved.yaml").write_text("name: x\n")
    return folder


def published(run: Path, base: str = "git+git@host:group/model.git#main", **output: Any) -> Path:
    checkpoint, model = run / "checkpoints" / "checkpoint-2", run.parent / "model"
    names = {str(model): base} if base.startswith("git+") else {}
    return publish(Publication(run, checkpoint, model, base, OutputConfig(**output), FACTS, names))


def test_the_layout_is_complete_and_holds_no_pickle(run: Path) -> None:
    output = published(run)
    files = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"}
    adapter = {"adapter_config.json", "adapter_model.safetensors", "trainer_state.json", "training_config.json"}
    state = adapter | tokenizer | {"README.md", "optimizer.safetensors", "data_state.json"}
    assert files == {
        *(adapter | tokenizer),
        *(f"checkpoint-2/{name}" for name in state),
        *(".gitattributes", "README.md", "loss.svg", REQUEST_FILE, "predictions.jsonl", "metrics.json"),
        "runs/Nov23/events.out.tfevents.1.0",
    }
    assert not {path for path in files if path.endswith((".bin", ".pt", ".pth", ".pkl"))}
    assert (output / REQUEST_FILE).read_bytes() == (run / "config.json").read_bytes()
    attributes = (output / ".gitattributes").read_text()
    assert all(f"{pattern} filter=lfs" in attributes for pattern in ("*.safetensors", "*tfevents*", "tokenizer.json"))
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_the_card_is_filled_in(run: Path) -> None:
    card = (published(run) / "README.md").read_text()
    assert "More Information Needed" not in card
    assert "None" not in card
    for fact in (
        *("git@host:group/model.git", "https://host/rows.git", "1,234", "A CPU", "2 ranks", "4,321 tokens seen"),
        *("| step 2, evaluation | 5.4000 |", "| step 2, my.code | 5.5000 |", "| training, mean of 2 steps | 5.8000 |"),
        *("![training and evaluation loss](loss.svg)", "| chrf | 12.5 |"),
        *("r 16", "0.0002, linear", "gemma/terms", "2 of 2 optimizer steps"),
    ):
        assert fact in card
    assert "git+" not in card


def test_the_plot_shows_every_loss() -> None:
    svg = ElementTree.fromstring(loss_plot(HISTORY))
    space = "{http://www.w3.org/2000/svg}"
    (line,) = svg.iter(f"{space}polyline")
    assert len(line.attrib["points"].split()) == 2
    assert len(list(svg.iter(f"{space}circle"))) == 2
    assert "no losses" in loss_plot([])
    odd: list[dict[str, Any]] = [{"step": 1, "eval_loss": math.nan}, {"step": 2, "eval_loss": math.inf}]
    assert loss_plot([*HISTORY, *odd]) == loss_plot(HISTORY)


def test_a_clone_is_named_by_its_repository_and_a_folder_by_its_name(run: Path) -> None:
    output = published(run)
    for place in (output, output / "checkpoint-2"):
        config = json.loads((place / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "git+git@host:group/model.git#main"
        written = json.loads((place / "training_config.json").read_text())
        assert written["train"]["model"] == "git+git@host:group/model.git#main"
    local = json.loads((published(run, base=str(run.parent / "model")) / "adapter_config.json").read_text())
    assert local["base_model_name_or_path"] == "./model"


def test_padding_board_and_formats_do_what_they_say(run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output = published(run, padding_side="left", tensorboard=False, formats=["merged"])
    assert AutoTokenizer.from_pretrained(output).padding_side == "left"
    assert AutoTokenizer.from_pretrained(output / "merged").padding_side == "left"
    assert not (output / "runs").exists()
    merged = AutoModelForCausalLM.from_pretrained(output / "merged")
    assert merged.config.num_hidden_layers == 4
    again = published(run, padding_side="right")
    assert AutoTokenizer.from_pretrained(again).padding_side == "right"
    assert (again / "runs").is_dir()
    assert not (again / "merged").exists()


def test_special_tokens_are_mapped_with_their_flags(run: Path) -> None:
    tokens = json.loads((published(run) / "special_tokens_map.json").read_text())
    assert tokens["eos_token"]["content"] == "<eos>"
    assert set(tokens["eos_token"]) == {"content", "lstrip", "normalized", "rstrip", "single_word"}


def test_transformers_and_peft_read_what_was_published(run: Path) -> None:
    from peft import PeftModel
    from transformers import Gemma3ForCausalLM, TrainerState

    output = published(run)
    state = TrainerState.load_from_json(str(output / "checkpoint-2" / "trainer_state.json"))
    assert [entry["loss"] for entry in state.log_history if "loss" in entry] == [6.1, 5.5]
    assert state.logging_steps > 0
    PeftModel.from_pretrained(Gemma3ForCausalLM.from_pretrained(run.parent / "model"), output)


def test_a_failure_leaves_the_older_result_whole(run: Path) -> None:
    output = published(run)
    (run.parent / "model" / "config.json").unlink()
    for path in (run.parent / "model").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(Exception, match=r"has no .*weights"):
        published(run, formats=["merged"])
    assert (output / "README.md").is_file()
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_secrets_of_the_configuration_are_not_published_and_files_are_the_users_own(run: Path) -> None:
    config = run / "checkpoints" / "checkpoint-2" / "training_config.json"
    content = json.loads(config.read_text())
    content["train"]["deepspeed"]["config"] = {"monitor": {"api_key": "Zx9Qw7Lk2Mn4"}, "note": "HF_TOKEN=Zx9Qw7Lk2Mn4"}
    config.write_text(json.dumps(content))
    for path in run.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)  # as a run leaves them
    before = os.umask(0o077)
    try:
        folder = published(run, formats=["merged"])
    finally:
        os.umask(before)
    assert not any(b"Zx9Qw7Lk2Mn4" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert json.loads((folder / "training_config.json").read_text())["train"]["lora"] == content["train"]["lora"]
    assert {path.stat().st_mode & 0o077 for path in [folder, *folder.rglob("*")]} == {0}
