"""The real 270M with an adapter: peft, the merged model and the loop answer equally, and bf16 stays in its bounds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from gemfleet.launcher.result.tokenizer_files import copy_companions
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.demo import demo_data_rows
from gemfleet.train.model.base_check import load_tokenizer
from gemfleet.train.model.compare import compare_published
from gemfleet.train.model.comparison import Comparison, Tokens
from gemfleet.train.model.gemma import attach_lora, load_base_model
from gemfleet.train.model.merge import merge_adapter
from gemfleet.train.model.predict import Question
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(2400)]


def config(precision: str) -> TrainConfig:
    return TrainConfig.model_validate({"model": "demo", "data": {"train": "demo"}, "precision": precision})


def in_fp32(model: Path, folder: Path) -> Path:
    """A copy of a model whose weights are stored in fp32, so that merging rounds nothing."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {name: tensor.float() for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text()) | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def make_adapter(base: Path, folder: Path) -> Path:
    lora = config("fp32").lora
    model = attach_lora(load_base_model(base, torch.float32, torch.device("cpu")), lora, 0, "demo")
    torch.manual_seed(1)
    for name, parameter in model.adapter_parameters().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.peft_model.save_pretrained(folder, save_embedding_layers=False)
    copy_companions(base, folder)
    return folder


def compared(base: Path, adapter: Path, precision: str, prompts: list[Tokens]) -> Comparison:
    merged = adapter.with_name(f"merged-{precision}")
    merge_adapter(base, adapter, merged)
    copy_companions(base, merged)
    asked = [Question(prompt, ()) for prompt in prompts]
    found = compare_published(base, adapter, adapter, merged, config(precision), asked, "the demonstration")
    print(f"{found.tokens} tokens of {found.prompts} answers, {found.describe()}")
    shutil.rmtree(merged)
    return found


def test_twenty_answers_are_equal_and_bf16_is_within_its_bound(demo_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(demo_model)
    asked = [f"<bos>{row['prompt']}" for row in demo_data_rows()[::30]][:20]
    prompts: list[Tokens] = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in asked]
    adapter = make_adapter(demo_model, tmp_path / "adapter")
    exact = compared(in_fp32(demo_model, tmp_path / "base"), adapter, "fp32", prompts)
    assert (exact.problems, exact.prompts, exact.tokens > 500) == ([], 20, True)
    assert [form.equal for form in exact.forms] == [20, 20]
    assert all(form.difference < 1e-2 for form in exact.forms)
    rounded = compared(demo_model, adapter, "bf16", prompts[:4])
    assert rounded.problems == []
    assert all(0 < form.difference < 0.25 * (form.bound or 0) for form in rounded.forms)
