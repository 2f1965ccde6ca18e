"""Frozen bases in 8 or 4 bits. bitsandbytes stores the weights; every product takes the dequantised weight.

`int4` is NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314). The projections that would lose most by
it have 8 bits (`train/planning/mixed_bits.py`). `int8` has one scale for each output row.

The forwards of bitsandbytes' layers are not called: LLM.int8() passes activations through fp16, which Gemma 3
overflows, and the 4-bit layer repacks its weight for the CPU in evaluation and cannot train afterwards. Here forward
and backward use the same dense weight, which is made for the product and dropped after it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..config.schema import Quantization
from .nf4 import register_nf4
from .quantised_product import dense_weight, quantised_product

UNTOUCHED = ["lm_head"]  # tied to the embedding


def loading_options(
    quantization: Quantization, eight_bits: Sequence[str], dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """The arguments by which `from_pretrained` quantises each weight as it is read; {} for `none`.

    eight_bits: projections that int4 does not change, so that `store_in_8_bits` can
    """
    if quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=quantization == "int4",
        load_in_8bit=quantization == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[*UNTOUCHED, *(eight_bits if quantization == "int4" else ())],
    )
    if quantization == "int4":
        config.quant_method = register_nf4()
    return {"quantization_config": config, "device_map": {"": device}}


def store_in_8_bits(model: nn.Module, projections: Collection[str]) -> None:
    """Replaces the dense linear layers of these names by layers like `int8`'s, with one scale for each output row."""
    for path, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and path.rpartition(".")[2] in projections:
            model.set_submodule(path, _in_8_bits(layer))


def _in_8_bits(layer: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    codes, largest = in_8_bits(layer.weight.detach())
    narrow: nn.Module = Linear8bitLt(
        layer.in_features, layer.out_features, bias=False, has_fp16_weights=False, device="meta"
    )
    narrow.weight = Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=largest)
    narrow.bias = layer.bias
    return narrow


def in_8_bits(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The int8 codes of some rows of a weight, and the fp32 magnitude that 127 stands for in each of them."""
    largest = rows.float().abs().amax(1)
    steps = 127 / largest.clamp_min(torch.finfo(torch.float32).tiny)
    return (rows * steps.unsqueeze(1)).round_().to(torch.int8), largest


def in_8_bits_by_library(rows: Tensor) -> tuple[Tensor, Tensor]:
    """As `in_8_bits`, but rounded through fp16, as bitsandbytes does when it loads a whole model in 8 bits."""
    from bitsandbytes.functional import int8_vectorwise_quant

    codes, largest, _ = int8_vectorwise_quant(rows.to(torch.float16))
    return codes, largest


def dequantiser(layer: nn.Module) -> Dequantise | None:
    """What makes a layer's stored weight dense; None if it is dense already."""
    if type(layer) is nn.Linear:
        return None
    if isinstance(layer, PackedLinear):
        return layer.dequantise
    weight: Any = layer.weight
    if not hasattr(weight, "quant_state"):
        return Dequantise([weight.SCB], tuple(weight.shape))
    state = weight.quant_state
    return Dequantise([state.absmax, state.state2.absmax, state.offset], tuple(state.shape))


def is_quantised(module: nn.Module) -> bool:
    """Whether this linear layer has a quantised weight. Does not import bitsandbytes."""
    return isinstance(module, PackedLinear) or any(
        kind.__name__ in ("Linear4bit", "Linear8bitLt") and kind.__module__.startswith("bitsandbytes.")
        for kind in type(module).__mro__
    )


def multiply_exactly(model: nn.Module) -> int:
    """Makes every quantised layer multiply with its dequantised weight. Returns the number of layers."""
    layers = [module for module in model.modules() if is_quantised(module)]
    for layer in layers:
        kind: Any = type(layer)
        layer.__class__ = _exact_kind(kind)
    return len(layers)


class Dequantise:
    """Makes one stored weight dense. scales: as `quantised_product` takes them; shape: [out, in]"""

    def __init__(self, scales: list[Tensor], shape: tuple[int, int]) -> None:
        self.scales, self.shape = scales, shape

    def __call__(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        return dense_weight(codes, self.scales, self.shape, dtype)


def frozen_product(x: Tensor, weight: Tensor, dequantise: Dequantise | None, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, for a weight W [out, in] as it is stored. It is dense only for this product."""
    if dequantise is not None and torch.compiler.is_compiling():
        product = quantised_product(x, weight, dequantise.scales, *dequantise.shape, back=False)
        return product if bias is None else product + bias
    return nn.functional.linear(x, weight if dequantise is None else dequantise(weight, x.dtype), bias)


def frozen_product_back(gradient: Tensor, weight: Tensor, dequantise: Dequantise | None) -> Tensor:
    """gradient W, as `frozen_product`."""
    if dequantise is not None and torch.compiler.is_compiling():
        return quantised_product(gradient, weight, dequantise.scales, *dequantise.shape, back=True)
    return gradient @ (weight if dequantise is None else dequantise(weight, gradient.dtype))


def add_frozen_product_back(total: Tensor, gradient: Tensor, weight: Tensor, dequantise: Dequantise | None) -> Tensor:
    """`total` + gradient W, in place."""
    if dequantise is not None and torch.compiler.is_compiling():
        return total.add_(frozen_product_back(gradient, weight, dequantise))
    return total.addmm_(gradient, weight if dequantise is None else dequantise(weight, gradient.dtype))


@cache
def _exact_kind(kind: Any) -> Any:
    return type(f"Exact{kind.__name__}", (_ExactForward, kind), {})


class _ExactForward:
    def forward(self: Any, x: Tensor) -> Tensor:
        output: Tensor = _ExactProduct.apply(x, self.weight, self.bias, dequantiser(self))
        return output


class PackedLinear(_ExactForward, nn.Linear):
    """A linear layer that has no weight of its own: `packed_layers.py` gives it codes as its `weight`, and scales."""

    dequantise: Dequantise


class _ExactProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dequantise: Dequantise) -> Tensor:
        """x: [..., in]; weight: as stored, frozen; returns [..., out]."""
        ctx.save_for_backward(weight)
        ctx.dequantise = dequantise
        return frozen_product(x, weight, dequantise, bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return frozen_product_back(upstream[0], weight, ctx.dequantise), None, None, None
