"""Reads the packaged Gemma 3 270M from its GGUF file into a bf16 model that `save_pretrained` can write.

transformers reads GGUF too, but its Python loops over the vocabulary's 800,000 entries take minutes. The package
checks its file by sha256, so this module may rely on shapes and names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The parts of a decoder layer: GGUF's names (llama.cpp, gguf-py/gguf/constants.py) and transformers' names.
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
TOP_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def load_demo_model(path: Path, advance: Callable[[int, int], None]) -> Any:
    """The model in bf16. Calls `advance(done, total)` after each tensor."""
    import torch
    from gguf.quants import dequantize
    from transformers import Gemma3ForCausalLM

    tensors = _reader(path).tensors
    state: dict[str, torch.Tensor] = {}
    for done, tensor in enumerate(tensors, 1):
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if "norm" in tensor.name:
            weight -= 1  # GGUF stores the factor, Gemma the factor less one
        state[_transformers_name(tensor.name)] = weight.to(torch.bfloat16)
        advance(done, len(tensors))
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = Gemma3ForCausalLM(_config()).to(torch.bfloat16)
    model.load_state_dict(state, strict=True)
    return model


def _config() -> Any:
    """The configuration of Gemma 3 270M (google/gemma-3-270m, config.json)."""
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        layer_types=[("full" if layer % 6 == 5 else "sliding") + "_attention" for layer in range(18)],
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
        dtype="bfloat16",
        architectures=["Gemma3ForCausalLM"],
    )


def _transformers_name(name: str) -> str:
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.weight" if match else TOP_NAMES[name]


def _reader(path: Path) -> Any:
    """gguf's reader, changed to skip the vocabulary's arrays, since it makes an object of every entry."""
    from gguf import GGUFReader, GGUFValueType

    class TensorReader(GGUFReader):  # type: ignore[misc, unused-ignore]
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type != GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            view = memoryview(self.data)
            kind = int.from_bytes(view[orig_offs : orig_offs + 4], "little")
            count = int.from_bytes(view[orig_offs + 4 : orig_offs + 12], "little")
            end = orig_offs + 12
            if kind == GGUFValueType.STRING:
                for _ in range(count):
                    end += 8 + int.from_bytes(view[end : end + 8], "little")
            else:
                end += count * self.gguf_scalar_to_np[GGUFValueType(kind)]().itemsize
            return end - orig_offs, [], [], [GGUFValueType.ARRAY]

    return TensorReader(path)
