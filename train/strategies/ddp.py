"""Data parallelism for adapters: every rank has the frozen base, and a step sums the adapters' gradients once.

torch's DistributedDataParallel averages over each micro-batch and wants equally many on all ranks. Here the loss is
already divided by the supervised tokens of the whole global batch. So one all-reduce at the step's end sums the
gradients, and ranks may have different numbers of micro-batches, or none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..config.schema import Quantization
from ..config.sections.recipe import OptimConfig
from ..model.gemma import TrainableModel, load_base_model
from .base import StateDict, by_parameter
from .collectives import sum_over_ranks

BUCKET_BYTES = 64 * 1024 * 1024


class DdpStrategy:
    """`strategy: ddp`."""

    name = "ddp"

    def __init__(self, optim: OptimConfig, quantization: Quantization = "none") -> None:
        self._optim_config, self._quantization = optim, quantization
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1

    def load_base(self, folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
        return load_base_model(folder, dtype, device, self._quantization)

    def setup(self, model: TrainableModel) -> TrainableModel:
        self.hold(model.adapter_parameters())
        return model

    def hold(self, parameters: dict[str, nn.Parameter]) -> None:
        """Takes over the parameters to train, by their names. They are whole on every rank, and become equal."""
        self._parameters = parameters
        if self.world_size > 1:
            for parameter in parameters.values():
                dist.broadcast(parameter.data, src=0)
        self._optimizer = build_optimizer(list(parameters.values()), self._optim_config)

    def passes(self, own: int) -> int:
        return own  # a pass needs no other rank

    def backward(self, loss: Tensor) -> None:
        """Adds this pass's gradients to earlier ones all at once; one by one it would take hundreds of launches."""
        parameters = list(self._parameters.values())
        before = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        both = [(p, was, p.grad) for p, was in zip(parameters, before, strict=True) if was is not None]
        sums = [(was, new) for _, was, new in both if new is not None]
        if sums:
            torch._foreach_add_([was for was, _ in sums], [new for _, new in sums])
        for parameter, was, _ in both:
            parameter.grad = was

    def reduce_gradients(self) -> None:
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.world_size == 1:
            return
        for bucket in _buckets([p.grad for p in self._parameters.values() if p.grad is not None]):
            flat = torch.cat([g.reshape(-1) for g in bucket])
            dist.all_reduce(flat)
            for gradient, reduced in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(reduced.view_as(gradient))

    def clip(self, max_norm: float) -> float:
        limit = max_norm if max_norm > 0 else float("inf")
        return float(nn.utils.clip_grad_norm_(list(self._parameters.values()), limit))

    def step(self, learning_rate: float) -> None:
        optimizer_step(self._optimizer, learning_rate)

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        return sum_over_ranks(values, next(iter(self._parameters.values())).device)

    def gather_adapter(self) -> StateDict:
        return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in self._parameters.items()}

    def gather_optimizer(self) -> StateDict:
        return {
            f"{name}.{field}": torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()
            for name, parameter in self._parameters.items()
            for field, value in self._optimizer.state.get(parameter, {}).items()
        }

    def restore(self, adapter: StateDict, optimizer: StateDict) -> None:
        states = by_parameter(optimizer)
        for name, parameter in self._parameters.items():
            parameter.data.copy_(adapter[name])
            if name in states:
                # `step` too: the fused AdamW keeps its count on the parameter's device.
                self._optimizer.state[parameter] = {
                    field: value.to(parameter.device, copy=True) for field, value in states[name].items()
                }


def build_optimizer(parameters: list[nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """torch's fused AdamW over fp32 adapters. Each step sets its learning rate."""
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def optimizer_step(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Updates the parameters once at this learning rate, and frees their gradients."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _buckets(gradients: list[Tensor]) -> list[list[Tensor]]:
    """Consecutive gradients in groups of about `BUCKET_BYTES`, so no collective is tiny or huge."""
    groups: list[list[Tensor]] = [[]]
    size = 0
    for gradient in gradients:
        nbytes = gradient.numel() * gradient.element_size()
        if groups[-1] and size + nbytes > BUCKET_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(gradient)
        size += nbytes
    return groups
