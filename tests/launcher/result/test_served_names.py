"""A published adapter is as vLLM and llama.cpp read one: each of their loaders' rules, for both classes of Gemma 3.

The rules are those of vLLM's `vllm/lora/peft_helper.py`, `lora_model.py` and `utils.py`, and of llama.cpp's
`convert_lora_to_gguf.py` with gguf's map of names. `test_gguf.py` runs the converter itself where there is one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from gemfleet.train.config.sections.recipe import LoraConfig
from peft import PeftModel
from safetensors.torch import load_file
from support.tiny_multimodal import save_tiny_multimodal
from support.tiny_result import tiny_base, tiny_result
from support.tiny_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM

LEAVES = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
# vLLM's name of a module: gemma3_mm.py maps `model.language_model.` to `language_model.model.`.
VLLM = {"text": "model.layers.", "multimodal": "language_model.model.layers."}


def base_of(folder: Path, kind: str) -> Path:
    if kind == "text":
        return tiny_base(folder)
    tiny_tokenizer(save_tiny_multimodal(folder))
    return folder


@pytest.fixture(params=["text", "multimodal"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def published(tmp_path: Path, kind: str) -> Path:
    return tiny_result(
        tmp_path / "run", base_of(tmp_path / "mine", kind), "owner/name", "messages", lora=LoraConfig(r=4)
    )


def settings(published: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((published / "adapter_config.json").read_text())
    return content


def modules(published: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of A and B by module, without peft's prefix. Every tensor has one of the two names."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in load_file(published / "adapter_model.safetensors").items():
        assert name.startswith("base_model.model.")
        module, side, weight = name.removeprefix("base_model.model.").rsplit(".", 2)
        assert (side in ("lora_A", "lora_B"), weight) == (True, "weight")
        found.setdefault(module, {})[side] = tuple(tensor.shape)
    return found


def test_vllm_takes_the_configuration(published: Path) -> None:
    config = settings(published)
    assert (type(config["r"]), type(config["lora_alpha"])) == (int, int)
    assert (config["r"], config["lora_alpha"], config["bias"], config["modules_to_save"]) == (4, 32, "none", None)
    assert config["init_lora_weights"] is True  # others may have changed the base
    for refused in ("use_dora", "use_rslora", "lora_bias", "use_qalora", "use_bdlora", "alora_invocation_tokens"):
        assert not config.get(refused), refused
    for refused in ("layer_replication", "trainable_token_indices", "fan_in_fan_out"):
        assert not config.get(refused), refused
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})  # it takes the values of both
    assert config["target_modules"] == LEAVES  # a list, of the last parts of names
    assert config["base_model_name_or_path"] == "owner/name"


def test_vllm_finds_a_module_for_each_tensor(published: Path, kind: str) -> None:
    found = modules(published)
    assert len(found) == 4 * len(LEAVES)
    for module, shapes in found.items():
        mapped = module.replace("model.language_model.", "language_model.model.", 1)
        assert mapped.startswith(VLLM[kind])
        assert mapped.rpartition(".")[2] in LEAVES
        assert set(shapes) == {"lora_A", "lora_B"}
        assert shapes["lora_A"][0] == shapes["lora_B"][1] == 4


def test_llama_cpp_finds_a_tensor_for_each(published: Path) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, 4)
    for module in modules(published):
        name = module.replace("model.language_model.", "model.", 1)
        assert names.get_name(f"{name}.weight", try_suffixes=(".weight",)), name


def test_peft_puts_an_adapter_on_the_language_model_alone(published: Path, tmp_path: Path) -> None:
    """The vision tower has modules of the same last parts."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "mine"), str(published))
    loaded = {
        name.partition(".lora_")[0].removeprefix("base_model.model.") for name in model.state_dict() if "lora_" in name
    }
    assert loaded == set(modules(published))


def test_some_layers_alone_are_named_in_full(tmp_path: Path, kind: str) -> None:
    lora = LoraConfig(r=4, target_modules=["layers.1.self_attn.q_proj", "layers.2.self_attn.q_proj"])
    published = tiny_result(tmp_path / "run", base_of(tmp_path / "mine", kind), "owner/name", "messages", lora=lora)
    assert settings(published)["target_modules"] == sorted(modules(published))
    assert len(modules(published)) == 2
