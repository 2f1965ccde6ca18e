"""Activation checkpointing of the decoder layers: the forward pass keeps less, and backward computes the rest again.

`full` keeps only each layer's input (Chen et al. 2016, arXiv:1604.06174) and costs one more forward of the layers.
`selective` keeps what is expensive, the results of matrix products and of attention. It computes norms, rotary
embeddings and activations again, which are cheap but hold most of the memory. Neither changes any number.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from ..config.schema import ActivationCheckpointing

# In-place products are listed too: backward then finds the finished sum and does not add twice.
DEAR_OPERATORS = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::addmm_",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_attention_math",
        "torch_attn::_varlen_attn",
        "gemfleet::block_attention",
    }
)


def checkpoint_layers(layers: nn.ModuleList, mode: ActivationCheckpointing) -> None:
    """Makes every layer recompute in backward what `mode` does not keep. `off` changes nothing."""
    if mode == "off":
        return
    for layer in layers:
        layer.forward = RecomputedForward(layer, layer.forward, selective=mode == "selective")


class RecomputedForward:
    """Replaces a layer's `forward`. The module's hooks stay outside and run once."""

    def __init__(self, layer: nn.Module, forward: Callable[..., Tensor], selective: bool) -> None:
        self._forward = forward
        # Drawing the same dropout again needs the generator's state, which costs a copy from the device.
        self._options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": _uses_dropout(layer)}
        if selective:
            self._options["context_fn"] = _keep_dear_results

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        output: Tensor = checkpoint(self._forward, *args, **self._options, **kwargs)
        return output


Kept = defaultdict[Any, deque[Any]]


def _keep_dear_results() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """The contexts around a layer's forward and around its repetition in backward.

    torch's own contexts demand the same operators in both. Under ZeRO-3 they differ: in the repetition, the hooks that
    gather parameters find some of them gathered already. Here only the expensive operators must agree.
    """
    kept: Kept = defaultdict(deque)
    return _KeepDearResults(kept), _TakeDearResults(kept)


class _BesideCompiledCode(TorchDispatchMode):
    """A mode in which compiled functions stay compiled, and flex attention runs, as in torch's own contexts."""

    supports_higher_order_operators = True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True


class _KeepDearResults(_BesideCompiledCode):
    """Around the forward: keeps each expensive result, in order.

    The base's product and the adapter's in-place addition share one tensor. It is kept once, after the addition.
    """

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        if _is_dear(operator):
            self._kept[operator].append(tree_map_only(Tensor, torch.detach, result))
        return result


class _TakeDearResults(_BesideCompiledCode):
    """Around the repetition: returns each expensive result that was kept, in place of computing it again."""

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._kept[operator].popleft() if _is_dear(operator) else operator(*args, **(kwargs or {}))


@cache
def _is_dear(operator: Any) -> bool:
    return hasattr(operator, "name") and operator.name().partition(".")[0] in DEAR_OPERATORS


def _uses_dropout(layer: nn.Module) -> bool:
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in layer.modules())
