"""Activation checkpointing of the decoder layers: keep less of the forward pass, compute it again in backward.

`full` keeps each layer's input alone (Chen et al. 2016, arXiv:1604.06174): one more forward pass of the layers.
`selective` keeps what is dear to compute, the results of matrix products and of attention, and computes norms, rotary
embeddings and activations again, which are cheap but hold most of the memory. Neither changes a single number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from .config import ActivationCheckpointing

# In-place products are listed too: backward then finds the finished sum and adds nothing a second time.
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
    """Make every layer recompute in backward what `mode` does not keep; `off` changes nothing."""
    if mode == "off":
        return
    for layer in layers:
        layer.forward = RecomputedForward(layer, layer.forward, selective=mode == "selective")


class RecomputedForward:
    """Stands in for a layer's `forward`; module hooks stay outside and run once."""

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


def _keep_dear_results() -> Any:
    # The base's product and the adapter's in-place addition share one tensor, which is kept once, finished.
    return create_selective_checkpoint_contexts(_policy, allow_cache_entry_mutation=True)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = operator.name().partition(".")[0] if hasattr(operator, "name") else ""
    return CheckpointPolicy.MUST_SAVE if name in DEAR_OPERATORS else CheckpointPolicy.PREFER_RECOMPUTE


def _uses_dropout(layer: nn.Module) -> bool:
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in layer.modules())
