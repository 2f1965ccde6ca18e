"""DeepSpeed's ZeRO: by stage, the ranks divide the optimizer's state, the gradients and the parameters among them.

The engine wraps only the decoder, which is what the loop calls. Its optimizer is torch's AdamW over the adapters.
DeepSpeed averages gradients over ranks. Ours are sums, so the loss is multiplied by the number of ranks. A trained
projector is outside the engine, and whole on each rank.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..config.deepspeed_json import with_reduce_bucket
from ..config.sections.recipe import OptimConfig
from ..kernels.loss import SupervisedCrossEntropy
from ..model.gemma import TrainableModel, load_base_model
from ..model.lean import WeightFiles, placeholder_model
from .base import StateDict
from .collectives import most_over_ranks, sum_over_ranks, sum_scalar
from .ddp import build_optimizer
from .whole import WholeParameters
from .zero_shards import fill_shares


class DeepSpeedStrategy:
    """`strategy: deepspeed`. It needs a process group, also for one rank.

    stage: 1, 2 or 3; engine_json: the configuration for `deepspeed.initialize`
    """

    name = "deepspeed"

    def __init__(self, optim: OptimConfig, stage: int, engine_json: dict[str, Any]) -> None:
        self._optim_config = optim
        self._stage = stage
        self._engine_json = engine_json
        self.world_size = dist.get_world_size()
        self._backwards_left = 0

    def load_base(self, folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
        """The base; under stage 3 placeholders, whose shares `setup` reads from the files."""
        if self._stage < 3:
            return load_base_model(folder, dtype, device)
        self._files, self._device = WeightFiles(folder), device
        return placeholder_model(folder, dtype)

    def setup(self, model: TrainableModel) -> TrainableModel:
        if self._stage < 3:
            self._device = model.device
        self._whole = WholeParameters(model, self._optim_config)
        outside = self._whole.parameters
        self._parameters = {name: p for name, p in model.adapter_parameters().items() if name not in outside}
        optimizer = build_optimizer(list(self._parameters.values()), self._optim_config)
        criterion = model.criterion
        engine_json = with_reduce_bucket(self._engine_json, sum(p.numel() for p in self._parameters.values()))
        with _quiet_deepspeed(self._device) as deepspeed:
            if self._stage == 3:
                criterion = _GatheredHead(criterion)
                fill_shares(model.peft_model.get_base_model(), self._files, self._device, engine_json)
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=model.text_model, optimizer=optimizer, config=engine_json, dist_init_required=False
            )
            if self._stage == 3:
                _gather_with_their_projection(model.text_model)
        copies = model.copies if self._stage < 3 else None
        return dataclasses.replace(
            model, text_model=self._engine, criterion=criterion, device=self._device, copies=copies
        )

    def passes(self, own: int) -> int:
        self._backwards_left = most_over_ranks(own, self._device)
        return self._backwards_left

    def backward(self, loss: Tensor) -> None:
        self._backwards_left -= 1
        self._engine.set_gradient_accumulation_boundary(self._backwards_left == 0)
        self._engine.backward(loss * self.world_size)

    def reduce_gradients(self) -> None:
        """Reduces those of whole parameters only, which have the loss's factor too.

        Backward has reduced the others, in the last pass under stage 1, in each pass under 2 and 3.
        """
        self._whole.scale(1 / self.world_size)
        self._whole.reduce_gradients()

    def clip(self, max_norm: float) -> float:
        """Returns the norm of all gradients. The engine's step scales its own by `clip_grad / (their norm + 1e-6)`.

        So where there are others, it gets the bound at which that is the factor of all.
        """
        own, others = self._own_norm(), self._whole.squares()
        self._optimizer.clip_grad = max_norm
        if not self._whole.parameters or own < 0:  # DeepSpeed's mark of a norm that is no number
            return own
        norm = float((own**2 + others) ** 0.5)
        self._optimizer.clip_grad = max_norm * (own + 1e-6) / (norm + 1e-6)
        if 0 < max_norm < norm:
            self._whole.scale(max_norm / (norm + 1e-6))
        return norm

    def _own_norm(self) -> float:
        """Of the engine's gradients. Collective."""
        if self._stage < 3:
            return float(self._optimizer.scaled_global_norm())
        from deepspeed.utils import safe_get_local_grad

        squares = torch.stack([safe_get_local_grad(p).square().sum() for p in self._parameters.values()])
        return float(sum_scalar(squares.double().sum(), self._device) ** 0.5)

    def step(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        self._whole.step(learning_rate)

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        return sum_over_ranks(values, self._device)

    def gather_adapter(self) -> StateDict:
        from deepspeed.utils import safe_get_full_fp32_param

        divided = {name: _on_cpu(safe_get_full_fp32_param(p), p) for name, p in self._parameters.items()}
        return divided | self._whole.gather_adapter()

    def gather_optimizer(self) -> StateDict:
        from deepspeed.utils import safe_get_full_optimizer_state

        states = [state for state in self._base_states() if state]
        fields = list(states[0]) if states else []
        return {
            f"{name}.{field}": states[0]["step"].detach().cpu().clone()
            if field == "step"
            else _on_cpu(safe_get_full_optimizer_state(parameter, field), parameter)
            for name, parameter in self._parameters.items()
            for field in fields
        } | self._whole.gather_optimizer()

    def restore(self, adapter: StateDict, optimizer: StateDict) -> None:
        self._whole.restore(adapter, optimizer)
        fields = _fields(optimizer)
        if fields:
            self._create_states(optimizer, fields)
        for name, parameter in self._parameters.items():
            self._set(parameter, adapter[name], None)
            for field in fields:
                self._set(parameter, optimizer[f"{name}.{field}"], field)

    def _partitions(self) -> list[Tensor]:
        """This rank's flat fp32 shares of the adapters. AdamW keeps its state for them."""
        if self._stage < 3:
            return list(self._optimizer.single_partition_of_fp32_groups)
        return list(self._optimizer.fp32_partitioned_groups_flat)

    def _base_states(self) -> list[dict[str, Tensor]]:
        return [self._optimizer.optimizer.state.get(flat, {}) for flat in self._partitions()]

    def _create_states(self, optimizer: StateDict, fields: list[str]) -> None:
        """Makes AdamW's state, which a resumed run needs before AdamW's first step would make it."""
        step = next(value for key, value in optimizer.items() if key.endswith(".step"))
        for flat in self._partitions():
            state = {field: torch.zeros_like(flat) for field in fields}
            self._optimizer.optimizer.state[flat] = {"step": step.to(flat.device, copy=True), **state}
        if self._stage < 3:
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _set(self, parameter: Any, full: Tensor, field: str | None) -> None:
        """Writes an adapter (`field` None), or one field of its optimizer state, from the whole tensor."""
        full = full.to(self._device)
        if self._stage == 3:
            _set_divided(parameter, full, field)
        elif field is None:
            from deepspeed.utils import safe_set_full_fp32_param

            parameter.data.copy_(full)
            safe_set_full_fp32_param(parameter, full)
        else:
            from deepspeed.utils import safe_set_full_optimizer_state

            safe_set_full_optimizer_state(parameter, full, field)


def _set_divided(parameter: Any, full: Tensor, field: str | None) -> None:
    """Writes this rank's share of a parameter under stage 3. The last rank's share may be padded."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    size = parameter.ds_tensor.numel()
    share = full.new_zeros(size)
    mine = full.flatten()[dist.get_rank() * size : (dist.get_rank() + 1) * size]
    share[: mine.numel()] = mine
    if field is not None:
        safe_set_local_optimizer_state(parameter, share, field)
        return
    safe_set_local_fp32_param(parameter, share)
    parameter.ds_tensor.data.copy_(share)
    if parameter.numel() == full.numel():  # small parameters may stay gathered
        parameter.data.copy_(full)


class _GatheredHead(SupervisedCrossEntropy):
    """The loss under stage 3. It gathers the head's weight, also on ranks that have nothing to score."""

    def __init__(self, criterion: SupervisedCrossEntropy) -> None:
        super().__init__(criterion.head_weight, criterion.softcap, criterion.chunk_rows)

    def __call__(self, hidden: Tensor, targets: Tensor) -> Tensor:
        import deepspeed

        with deepspeed.zero.GatheredParameters([self.head_weight]):
            return super().__call__(hidden, targets)


def _gather_with_their_projection(text_model: torch.nn.Module) -> None:
    """Has the weights below a fused projection gathered with it, since the forwards of their modules never run."""
    from deepspeed.runtime.zero import register_external_parameter
    from peft.tuners.lora import LoraLayer

    for module in text_model.modules():
        if isinstance(module, LoraLayer):
            for parameter in module.parameters():
                register_external_parameter(module, parameter)


def _fields(optimizer: StateDict) -> list[str]:
    """The fields of an AdamW state, without its count of steps."""
    return sorted({key.rpartition(".")[2] for key in optimizer} - {"step"})


def _on_cpu(tensor: Tensor, like: Any) -> Tensor:
    shape = getattr(like, "ds_shape", like.shape)
    return tensor.detach().to("cpu", copy=True).view(shape).contiguous()


@contextmanager
def _quiet_deepspeed(device: torch.device) -> Iterator[Any]:
    """Imports DeepSpeed, tells it this rank's device, and hides its messages below warnings.

    DeepSpeed would compile its own collectives for CPUs now; gloo takes their place.
    """
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    before = os.environ.get("LOCAL_RANK")
    # DeepSpeed takes this variable as the device's index, which is wrong if a rank sees only its own GPU.
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    try:
        yield deepspeed
    finally:
        os.environ.pop("LOCAL_RANK")
        if before is not None:
            os.environ["LOCAL_RANK"] = before
