"""A multimodal checkpoint trains on text without its vision tower, and the adapter loads onto the original class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gemfleet.train.checkpoint.state import save_adapter
from gemfleet.train.config.schema import Quantization, TrainConfig
from gemfleet.train.data.packing import TokenBlock, pack_block
from gemfleet.train.local.reporter import LocalReporter
from gemfleet.train.local.source import LocalBlockSource
from gemfleet.train.model.gemma import TrainableModel, attach_lora, load_base_model
from gemfleet.train.worker import run_training
from safetensors.torch import load_file
from support.reference_step import LORA, examples, fill_adapters
from support.tiny_multimodal import save_tiny_multimodal
from torch.nn.functional import cross_entropy
from transformers import Gemma3ForConditionalGeneration

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_multimodal(tmp_path_factory.mktemp("multimodal"))


def trainable(folder: Path, quantization: Quantization = "none") -> TrainableModel:
    model = attach_lora(load_base_model(folder, torch.float32, CPU, quantization), LORA, 0, str(folder))
    fill_adapters(model.peft_model)
    return model


def reference_loss(model: Gemma3ForConditionalGeneration, block: TokenBlock, token_types: bool) -> float:
    """Summed over each document alone, through the whole original class."""
    total = 0.0
    for start, end in zip(block.offsets[:-1], block.offsets[1:], strict=True):
        tokens = torch.from_numpy(block.tokens[start:end]).long()
        targets = torch.where(torch.from_numpy(block.supervised[start:end]), tokens, -100)
        types = {"token_type_ids": torch.zeros_like(tokens)[None]} if token_types else {}
        logits = model(input_ids=tokens[None], **types).logits[0, :-1]
        total += float(cross_entropy(logits, targets[1:], reduction="sum"))
    return total


def test_the_vision_tower_is_not_loaded(folder: Path) -> None:
    model = load_base_model(folder, torch.float32, CPU)
    assert not [name for name, _ in model.named_parameters() if "vision" in name or "projector" in name]
    assert not any(parameter.is_meta for parameter in model.parameters())
    original = Gemma3ForConditionalGeneration.from_pretrained(folder).state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("token_types", [True, False])
def test_the_adapter_fits_the_original_class_with_the_same_loss(
    folder: Path, tmp_path: Path, token_types: bool
) -> None:
    """`token_type_ids` are given or not: text makes no difference to the class, in training mode either."""
    from peft import PeftModel, get_peft_model_state_dict

    ours = trainable(folder)
    loss = float(ours.loss_sum(pack_block(examples(), 64)).detach())
    save_adapter(tmp_path, ours, {name: p.detach() for name, p in ours.adapter_parameters().items()})
    original = PeftModel.from_pretrained(Gemma3ForConditionalGeneration.from_pretrained(folder), tmp_path)
    assert get_peft_model_state_dict(original).keys() == load_file(tmp_path / "adapter_model.safetensors").keys()
    assert reference_loss(original.train(), examples(), token_types) == pytest.approx(loss, rel=1e-5)


def test_no_key_is_missing_or_unexpected(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    ours = trainable(folder)
    save_adapter(tmp_path, ours, {name: p.detach() for name, p in ours.adapter_parameters().items()})
    original = PeftModel.from_pretrained(Gemma3ForConditionalGeneration.from_pretrained(folder), tmp_path)
    result = original.load_adapter(str(tmp_path), "again")
    missing = [key for key in result.missing_keys if "again" in key]
    assert (missing, result.unexpected_keys) == ([], [])
    for name, parameter in ours.adapter_parameters().items():
        assert torch.equal(original.get_parameter(name.replace(".default.", ".again.")), parameter)
    assert not [name for name, _ in original.named_modules() if "vision" in name and "lora" in name]


@pytest.mark.parametrize("quantization", ["none", "int4", "int8"])
def test_a_run_from_the_saved_folder_learns(folder: Path, tmp_path: Path, quantization: Quantization) -> None:
    values = {
        "model": str(folder),
        "data": {"train": "unused.jsonl", "max_length": 64},
        "batch": {"global": 8, "micro": 1},
        "strategy": "ddp",
        "activation_checkpointing": "off",
        "optim": {"learning_rate": 0.03},
        "lora": {"r": 8},
        "epochs": 30.0,
        "evaluation": {"every": "never"},
        "checkpoint": {"every": "never"},
        "precision": "fp32",
        "quantization": quantization,
    }
    config = TrainConfig.model_validate(values)
    source = LocalBlockSource(examples(), {"eval": examples()}, global_batch=8, max_length=64, seed=1, world_size=1)
    with LocalReporter(tmp_path, 0, resume=False) as reporter:
        result = run_training(config, folder, source, reporter, 0, 0, tmp_path)
        saved = load_file(reporter.checkpoint_folder(result.steps) / "adapter_model.safetensors")
    assert result.eval_loss is not None
    assert result.eval_loss_before is not None
    assert result.eval_loss < 0.95 * result.eval_loss_before
    assert len(saved) == 2 * 7 * 4
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in saved)
