"""LoRA projections as one autograd node each, over peft's own modules and parameters.

peft computes `base(x) + B(A(dropout(x))) * scaling` as separate operations, with the input cast to the adapter's
fp32. Here the adapter's product is added in place onto the base's output, everything runs in the input's dtype, and
backward reuses the one saved input. Parameter names, initialisation, saving and merging stay peft's; only `forward`
is replaced.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .quantization import Dequantise, dequantiser, is_quantised


def fuse_lora_projections(model: nn.Module) -> int:
    """Replace the forward of every plain LoRA linear layer below `model`; return how many there were.

    A quantised base is dequantised for each product. Other layers, and LoRA variants, keep peft's own forward.
    """
    from peft.tuners.lora import LoraLayer

    fused = 0
    for module in model.modules():
        if isinstance(module, LoraLayer) and _is_plain(module):
            kind: Any = type(module)
            module.__class__ = _fused_kind(kind)
            fused += 1
    return fused


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
    """peft's class of layer with our forward. A class, as compiled code is shared by instances of one class only."""
    return type(f"Fused{kind.__name__}", (_FusedForward, kind), {})


class _FusedForward:
    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc, no-any-return]
        base = self.base_layer
        dropout = self.lora_dropout["default"]
        output: Tensor = _LoraProjection.apply(
            x,
            None if isinstance(dropout, nn.Identity) else dropout(x),
            base.weight,
            base.bias,
            self.lora_A["default"].weight,
            self.lora_B["default"].weight,
            self.scaling["default"],
            dequantiser(base),
        )
        return output


class _LoraProjection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        adapter_input: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
        dequantise: Dequantise | None,
    ) -> Tensor:
        """x: [..., in]; weight: frozen, as stored; a: [r, in]; b: [out, r]. Returns [..., out].

        adapter_input: [..., in], x after dropout; None: x itself.
        A quantised weight is kept for backward as it is stored, and made dense again there.
        """
        down, up = a.to(x.dtype), (b * scaling).to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        adapter_rows = rows if adapter_input is None else adapter_input.reshape(-1, x.shape[-1])
        inner = adapter_rows @ down.T
        output = nn.functional.linear(rows, _dense(weight, dequantise, x.dtype), bias)
        output.addmm_(inner, up.T)
        ctx.save_for_backward(adapter_rows, inner, weight, down, up)
        ctx.scaling, ctx.shape, ctx.same_input = scaling, x.shape, adapter_input is None
        ctx.adapter_dtypes, ctx.dequantise = (a.dtype, b.dtype), dequantise
        return output.view(*x.shape[:-1], up.shape[0])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        adapter_rows, inner, weight, down, up = ctx.saved_tensors
        gradient = upstream[0].reshape(-1, up.shape[0])
        gradient_inner = gradient @ up
        grad_a = (gradient_inner.T @ adapter_rows).to(ctx.adapter_dtypes[0])
        grad_b = (gradient.T @ inner).to(ctx.adapter_dtypes[1]).mul_(ctx.scaling)
        grad_x, grad_adapter_input = None, None
        if ctx.needs_input_grad[0]:
            grad_x = gradient @ _dense(weight, ctx.dequantise, gradient.dtype)
            if ctx.same_input:
                grad_x.addmm_(gradient_inner, down)
            grad_x = grad_x.view(ctx.shape)
        if ctx.needs_input_grad[1] and not ctx.same_input:
            grad_adapter_input = (gradient_inner @ down).view(ctx.shape)
        return grad_x, grad_adapter_input, None, None, grad_a, grad_b, None, None


def _dense(weight: Tensor, dequantise: Dequantise | None, dtype: torch.dtype) -> Tensor:
    return weight if dequantise is None else dequantise(weight, dtype)
