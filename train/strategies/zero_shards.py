"""Reads ZeRO-3's shares of the base from the files, one after the other. No rank ever holds a whole parameter.

DeepSpeed itself makes each parameter whole on every rank, and sends it from rank 0. Here each rank reads its own range
of each tensor. The ranks of a node share one copy of the files in the page cache.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..model.lean import WeightFiles, is_placeholder


def fill_shares(base: nn.Module, files: WeightFiles, device: torch.device, engine_json: dict[str, Any]) -> None:
    """Turns the placeholders of `base` into ZeRO-3 parameters with this rank's shares. Moves its buffers to `device`.

    `deepspeed.initialize` divides the rest, the adapters. DeepSpeed must know this rank's device already.
    """
    from deepspeed.runtime.zero.partition_parameters import Init

    placeholders = {name: p for name, p in base.named_parameters() if is_placeholder(p)}
    dtype = next(iter(placeholders.values())).dtype
    init: Any = Init(config_dict_or_path=engine_json, dtype=dtype)
    for name, parameter in placeholders.items():
        _divide(init, parameter, name.replace(".base_layer.", "."), files)
    for module in base.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def _divide(init: Any, parameter: Any, name: str, files: WeightFiles) -> None:
    """Does what DeepSpeed's `Init` does, but the parameter is never whole: its share is there before the division."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.swap_tensor.partitioned_param_swapper import PartitionedParamStatus

    # DeepSpeed gathers a parameter on the device that it had before. A placeholder's is the CPU.
    parameter.data = torch.zeros((), dtype=parameter.dtype, device=init.local_device).expand(parameter.shape)
    init._convert_to_deepspeed_param(parameter)
    size = parameter.aligned_size() // init.dp_world_size
    start = init.rank * size
    share = torch.zeros(size, dtype=parameter.dtype)
    mine = flat_range(files, name, parameter.ds_shape, start, min(start + size, parameter.ds_numel))
    share[: mine.numel()] = mine
    share = share.to(init.local_device if parameter.ds_persist else init.remote_device)
    if init.pin_memory and not parameter.ds_persist:
        share = get_accelerator().pin_memory(share)
    held: Any = share
    held.ds_numel, held.status, held.final_location = size, PartitionedParamStatus.AVAILABLE, None
    parameter.ds_tensor, parameter.ds_numel_aligned = held, parameter.aligned_size()
    parameter.partition()  # since the share is there, this only frees the placeholder


def flat_range(files: WeightFiles, name: str, shape: torch.Size, start: int, end: int) -> Tensor:
    """Elements start..end of a flattened parameter; may be none. Reads only the rows that hold them."""
    if end <= start:
        return torch.empty(0)
    width = math.prod(shape[1:])
    first = start // width
    rows = files.rows(name, first, -(-end // width))
    return rows.flatten()[start - first * width : end - first * width]
