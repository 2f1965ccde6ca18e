"""A merged model answers as the base with its adapter does, and loads like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gemfleet.train.errors import UserError
from gemfleet.train.model.merge import INDEX_FILE, merge_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from support.tiny_model import save_tiny_gemma3, tiny_config
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration

TEXT = r"model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
IDS = torch.arange(3, 40).unsqueeze(0)


def save_adapter(model: torch.nn.Module, folder: Path, targets: str | list[str]) -> None:
    """A random adapter whose update is far from zero."""
    peft_model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    peft_model.save_pretrained(folder)


def test_merged_equals_applied(tmp_path: Path) -> None:
    base = save_tiny_gemma3(tmp_path / "base")
    save_adapter(Gemma3ForCausalLM.from_pretrained(base), tmp_path / "adapter", TEXT)
    seen: list[tuple[int, int]] = []
    count = merge_adapter(
        base, tmp_path / "adapter", tmp_path / "merged", lambda *facts: seen.append(facts), shard_bytes=200_000
    )
    assert count == 28
    assert len(seen) == len(list((tmp_path / "merged").glob("model-*-of-*.safetensors"))) > 2
    applied = PeftModel.from_pretrained(Gemma3ForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        expected = applied(input_ids=IDS).logits
        torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)
        assert (plain(input_ids=IDS).logits - expected).abs().max() > 0.01


def test_a_multimodal_base_merges_too(tmp_path: Path) -> None:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=tiny_config().to_dict(), vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    load = Gemma3ForConditionalGeneration.from_pretrained
    targets = r"model\.language_model\.layers\.\d+\.(self_attn\.q_proj|mlp\.down_proj)"
    save_adapter(load(tmp_path / "base"), tmp_path / "adapter", targets)
    assert merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged") == 8
    applied = PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = applied(input_ids=IDS).logits
        torch.testing.assert_close(
            load(tmp_path / "merged").eval()(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5
        )


def test_bf16_is_rounded_once(tmp_path: Path) -> None:
    Gemma3ForCausalLM(tiny_config()).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    save_adapter(Gemma3ForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter", TEXT)
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    index = json.loads((tmp_path / "merged" / INDEX_FILE).read_text())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.bfloat16
    size = sum(p.numel() for p in merged.parameters()) * 2
    assert index["metadata"]["total_size"] == size


def test_an_adapter_of_another_model_or_of_the_tied_head_is_refused(tmp_path: Path) -> None:
    small, large = save_tiny_gemma3(tmp_path / "small", layers=2), save_tiny_gemma3(tmp_path / "large")
    save_adapter(Gemma3ForCausalLM.from_pretrained(large), tmp_path / "adapter", TEXT)
    with pytest.raises(UserError, match=r"layers\.2\..*which the model in .*small lacks"):
        merge_adapter(small, tmp_path / "adapter", tmp_path / "merged")
    save_adapter(Gemma3ForCausalLM.from_pretrained(small), tmp_path / "head", ["lm_head"])
    with pytest.raises(UserError, match="lm_head cannot be merged"):
        merge_adapter(small, tmp_path / "head", tmp_path / "merged")
