"""LoRA projections that read the same input become one autograd node. Modules and parameters stay peft's.

peft computes `base(x) + B(A(dropout(x))) * scaling` as separate operations, and casts the input to the adapter's fp32.
Here everything runs in the input's dtype, the adapter's product is added in place to the base's output, and backward
reads the one saved input. Projections of one input (q, k and v; gate and up) share the product with their stacked A
matrices. Only `forward` is replaced: names, initialisation, saving and merging are peft's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .quantization import add_frozen_product_back, dequantiser, frozen_product, frozen_product_back, is_quantised


class Adapters(NamedTuple):
    """The adapters of projections that share their input, in the dtype of the computation.

    down: [projections * r, in], the stacked A matrices; ups: [out, r] for each projection, B times the scaling
    """

    down: Tensor
    ups: tuple[Tensor, ...]


def fuse_lora_projections(model: nn.Module) -> int:
    """Replaces the forward of every plain LoRA linear layer below `model`. Returns the number of layers.

    A quantised weight is dequantised for each product. Other layers, and variants of LoRA, keep peft's forward.
    """
    from peft.tuners.lora import LoraLayer

    fused = 0
    for module in model.modules():
        if isinstance(module, LoraLayer) and _is_plain(module):
            kind: Any = type(module)
            module.__class__ = _fused_kind(kind)
            fused += 1
    return fused


def is_fused(module: nn.Module) -> bool:
    """Whether `fuse_lora_projections` has replaced this layer's forward."""
    return isinstance(module, _FusedForward)


def has_dropout(layer: Any) -> bool:
    """Whether dropout makes the adapter's input differ from the layer's."""
    return not isinstance(layer.lora_dropout["default"], nn.Identity)


def project(x: Tensor, layers: Sequence[Any], adapters: Adapters) -> tuple[Tensor, ...]:
    """The outputs [..., out] of all these layers for one x [..., in]. With dropout, it takes one layer only."""
    bases = [layer.base_layer for layer in layers]
    outputs: tuple[Tensor, ...] = _Projections.apply(
        x,
        layers[0].lora_dropout["default"](x) if has_dropout(layers[0]) else None,
        adapters.down,
        *adapters.ups,
        *[base.weight for base in bases],
        *[base.bias for base in bases],
        *[dequantiser(base) for base in bases],
    )
    return outputs


def _is_plain(module: Any) -> bool:
    base = module.base_layer
    return (
        (type(base) is nn.Linear or is_quantised(base))
        and not module.fan_in_fan_out
        and not module.lora_variant
        and list(module.lora_A) == ["default"]
        and module.lora_A["default"].bias is None
        and module.lora_B["default"].bias is None
    )


@cache
def _fused_kind(kind: Any) -> Any:
    """A subclass of peft's layer with our forward. Layers share compiled code only if they share their class."""
    return type(f"Fused{kind.__name__}", (_FusedForward, kind), {})


class _FusedForward:
    copies: Adapters | None = None  # this pass's, see `adapter_copies.py`

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc, no-any-return]
        (output,) = project(x, [self], _own_adapters(self, x.dtype) if self.copies is None else self.copies)
        return output


def _own_adapters(layer: Any, dtype: torch.dtype) -> Adapters:
    """The adapters, cast from the parameters now. For parameters that are gathered for this layer only."""
    up = (layer.lora_B["default"].weight * layer.scaling["default"]).to(dtype)
    return Adapters(layer.lora_A["default"].weight.to(dtype), (up,))


class _Projections(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, adapter_input: Tensor | None, down: Tensor, *of_each: Any) -> tuple[Tensor, ...]:
        """x: [..., in]; adapter_input: x after dropout, None: x itself; down: [projections * r, in].

        of_each: all ups [out, r], then all frozen weights as stored, all biases, and all functions that make a weight
        dense. Backward keeps a quantised weight as it is stored, and makes it dense again.
        """
        ups, weights, biases, dequantise = _quarters(of_each)
        rows = x.reshape(-1, x.shape[-1])
        adapter_rows = rows if adapter_input is None else adapter_input.reshape(-1, x.shape[-1])
        inner = adapter_rows @ down.T
        outputs = []
        for part, up, weight, bias, dense in zip(_parts(inner, ups), ups, weights, biases, dequantise, strict=True):
            output = frozen_product(rows, weight, dense, bias)
            output.addmm_(part, up.T)
            outputs.append(output.view(*x.shape[:-1], up.shape[0]))
        ctx.save_for_backward(adapter_rows, inner, down, *ups, *weights)
        ctx.dequantise, ctx.shape, ctx.same_input = dequantise, x.shape, adapter_input is None
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        adapter_rows, inner, down, *of_each = ctx.saved_tensors
        ups, weights = of_each[: len(upstream)], of_each[len(upstream) :]
        gradients = [gradient.reshape(-1, up.shape[0]) for gradient, up in zip(upstream, ups, strict=True)]
        of_inner = [gradient @ up for gradient, up in zip(gradients, ups, strict=True)]
        gradient_inner = of_inner[0] if len(of_inner) == 1 else torch.cat(of_inner, 1)
        grad_down = gradient_inner.T @ adapter_rows
        grad_ups = [gradient.T @ part for gradient, part in zip(gradients, _parts(inner, ups), strict=True)]
        grad_x, grad_adapter_input = None, None
        if ctx.needs_input_grad[0]:
            grad_x = frozen_product_back(gradients[0], weights[0], ctx.dequantise[0])
            for gradient, weight, dense in zip(gradients[1:], weights[1:], ctx.dequantise[1:], strict=True):
                grad_x = add_frozen_product_back(grad_x, gradient, weight, dense)
            if ctx.same_input:
                grad_x.addmm_(gradient_inner, down)
            grad_x = grad_x.view(ctx.shape)
        if ctx.needs_input_grad[1] and not ctx.same_input:
            grad_adapter_input = (gradient_inner @ down).view(ctx.shape)
        return grad_x, grad_adapter_input, grad_down, *grad_ups, *[None] * (3 * len(ups))


def _quarters(values: Sequence[Any]) -> list[Sequence[Any]]:
    size = len(values) // 4
    return [values[start : start + size] for start in range(0, len(values), size)]


def _parts(inner: Tensor, ups: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The input of each projection's B: its columns of [T, projections * r]."""
    return (inner,) if len(ups) == 1 else inner.split(ups[0].shape[1], 1)
