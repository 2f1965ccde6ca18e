"""Liger Kernel's norms and GeGLU (Hsu et al. 2024, arXiv:2410.10989) in the place of transformers' own.

Only these two: our own attention, loss and LoRA projections stay. A class is exchanged rather than a method of each
module, as elsewhere here, and weights, names and everything saved stay as they are.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

GEMMA_OFFSET = 1.0  # Gemma's norms multiply by 1 + weight


def use_liger(model: nn.Module) -> int:
    """Exchange every Gemma 3 norm and MLP below `model`; return how many modules there were."""
    from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP, Gemma3RMSNorm

    kinds = {Gemma3RMSNorm: _norm_kind, Gemma3MLP: _mlp_kind}
    modules = [module for module in model.modules() if type(module) in kinds]
    for module in modules:
        kind: Any = kinds[type(module)]()
        module.__class__ = kind
    return len(modules)


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
def _mlp_kind() -> Any:
    from liger_kernel.ops import LigerGELUMulFunction
    from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP

    class LigerMlp(Gemma3MLP):
        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.down_proj(LigerGELUMulFunction.apply(self.gate_proj(x), self.up_proj(x)))
            return output

    return LigerMlp
