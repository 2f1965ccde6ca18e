"""Puts norms, GeGLU and rotary embedding in place of transformers', for a CPU in bf16: memory is read once for each.

torch computes a norm in seven operators and keeps two fp32 copies of its input for backward. Here one function
computes it, and the input is kept as it is (`elementwise.cpp`). Classes are replaced as in `liger.py`: weights, names
and saved files do not change.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..shared_inputs import SharedInput
from .library import call, library


def use_fused(model: nn.Module) -> int:
    """Replaces the class of every Gemma 3 norm, MLP and attention below `model`, if the library can be built.

    Attention only where its projections share their input. Returns the number of modules.
    """
    from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention, Gemma3MLP, Gemma3RMSNorm

    if library() is None:
        return 0
    found = 0
    for module in model.modules():
        kind: Any = type(module)
        if kind is Gemma3RMSNorm:
            module.__class__ = _norm_kind()
        elif isinstance(module, Gemma3MLP) and module.config.hidden_activation == "gelu_pytorch_tanh":
            module.__class__ = _kind(_Mlp, kind)
        elif isinstance(module, Gemma3Attention) and isinstance(module, SharedInput):
            module.__class__ = _kind(_Attention, kind)
        else:
            continue
        found += 1
    return found


@cache
def _kind(taker: Any, kind: Any) -> Any:
    """A subclass of `kind` with the methods of `taker`."""
    return type(f"Fused{kind.__name__}", (taker, kind), {})


@cache
def _norm_kind() -> Any:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

    class FusedNorm(Gemma3RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.bfloat16 or self.weight.dtype != torch.bfloat16:
                return super().forward(x)  # type: ignore[no-any-return]
            output: Tensor = _Norm.apply(x, self.weight, self.eps)
            return output

    return FusedNorm


class _Mlp:
    def forward(self: Any, x: Tensor) -> Tensor:
        if isinstance(self, SharedInput) and self.copies is not None:
            return super().forward(x)  # type: ignore[misc, no-any-return]
        output: Tensor = self.down_proj(self.gated(self.gate_proj(x), self.up_proj(x)))
        return output

    def gated(self: Any, gate: Tensor, up: Tensor) -> Tensor:
        if gate.dtype != torch.bfloat16:
            return self.act_fn(gate) * up  # type: ignore[no-any-return]
        output: Tensor = _GeGlu.apply(gate, up)
        return output


class _Attention:
    def rotated(self, query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        if not query.dtype == key.dtype == cosine.dtype == torch.bfloat16:
            return super().rotated(query, key, cosine, sine)  # type: ignore[misc, no-any-return]
        query, key = (_Rotate.apply(heads, cosine[0].contiguous(), sine[0].contiguous()) for heads in (query, key))
        return query, key


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x: bf16 [..., width], in any order of the leading axes; weight: bf16 [width], frozen"""
        order = _order(x)
        rows = x.permute(order).contiguous()
        output, roots = torch.empty_like(rows), torch.empty(rows.shape[:-1], dtype=torch.float32)
        call("norm", rows, weight, output, roots, roots.numel(), x.shape[-1], eps)
        ctx.save_for_backward(rows, weight, roots)
        ctx.order = order
        # A view only where it must be one: FSDP2 warns of a model that returns one.
        return output if order == sorted(order) else output.permute(_inverse(order))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        rows, weight, roots = ctx.saved_tensors
        gradient, to_rows = upstream[0].permute(ctx.order).contiguous(), torch.empty_like(rows)
        call("norm_back", gradient, rows, weight, roots, to_rows, roots.numel(), rows.shape[-1])
        return to_rows.permute(_inverse(ctx.order)), None, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x: bf16 [1, heads, T, d], best as [T, heads, d] in memory; cosine, sine: [T, d], of equal halves"""
        ctx.save_for_backward(cosine, sine)
        return _turned(x, cosine, sine, 1.0)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turned(upstream[0], cosine, sine, -1.0), None, None


def _turned(x: Tensor, cosine: Tensor, sine: Tensor, sign: float) -> Tensor:
    rows = x[0].transpose(0, 1).contiguous()
    output = torch.empty_like(rows)
    call("rotate", rows, cosine, sine, output, *rows.shape, sign)
    return output.transpose(0, 1).unsqueeze(0)


class _GeGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        output = torch.empty_like(gate)
        call("geglu", gate, up, output, gate.numel())
        return output

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
        call("geglu_back", upstream[0].contiguous(), gate, up, to_gate, to_up, gate.numel())
        return to_gate, to_up


def _order(x: Tensor) -> list[int]:
    """The axes as they lie in memory, the last one kept last."""
    return [*sorted(range(x.dim() - 1), key=x.stride().__getitem__, reverse=True), x.dim() - 1]


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)
