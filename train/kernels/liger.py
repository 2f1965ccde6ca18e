"""Puts Liger Kernel's norms and GeGLU (Hsu et al. 2024, arXiv:2410.10989) in place of transformers'.

Only these two: attention, loss and LoRA projections are our own. As elsewhere here, a module's class is replaced, not
one of its methods. Weights, names and saved files do not change.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

from .shared_inputs import SharedInput

GEMMA_OFFSET = 1.0  # Gemma's norms multiply by 1 + weight


def use_liger(model: nn.Module) -> int:
    """Replaces the class of every Gemma 3 norm and MLP below `model`. Returns the number of modules."""
    from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP, Gemma3RMSNorm

    found = 0
    for module in model.modules():
        kind: Any = type(module)
        if kind is Gemma3RMSNorm:
            module.__class__ = _norm_kind()
        elif isinstance(module, Gemma3MLP) and not isinstance(module, _LigerMlp):
            module.__class__ = _mlp_kind(kind)
        else:
            continue
        found += 1
    return found


@cache
def _norm_kind() -> Any:
    from liger_kernel.ops import LigerRMSNormFunction
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

    class LigerNorm(Gemma3RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            # Not in place: a residual still reads the gradient that the kernel would overwrite.
            output: Tensor = LigerRMSNormFunction.apply(x, self.weight, self.eps, GEMMA_OFFSET, "gemma", False)
            return output

    return LigerNorm


@cache
def _mlp_kind(kind: Any) -> Any:
    """The class of an MLP with Liger's GeGLU. kind: transformers' class, or its subclass in `shared_inputs.py`"""
    return type("LigerMlp", (_LigerMlp, kind), {})


class _LigerMlp:
    def forward(self: Any, x: Tensor) -> Tensor:
        if isinstance(self, SharedInput) and self.copies is not None:
            return super().forward(x)  # type: ignore[misc, no-any-return]
        output: Tensor = self.down_proj(self.gated(self.gate_proj(x), self.up_proj(x)))
        return output

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        from liger_kernel.ops import LigerGELUMulFunction

        output: Tensor = LigerGELUMulFunction.apply(gate, up)
        return output
