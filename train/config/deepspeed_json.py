"""Merges a person's own DeepSpeed JSON with our settings, and names every key that contradicts one of them.

The training loop owns batch, optimizer, precision and clipping, so a JSON that sets them to other values is refused.
`"auto"`, transformers' word for "as the trainer says", is accepted for any key. All other keys reach DeepSpeed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .paths import read_small_file

Json = dict[str, Any]
REDUCE_BUCKET_VALUES = 5 * 10**8  # DeepSpeed's default


@dataclass(frozen=True)
class Settings:
    """The values of a run's configuration that DeepSpeed's JSON has keys for, and that JSON's content (`theirs`)."""

    stage: int
    offload_optimizer: bool
    offload_params: bool
    global_batch: int  # examples in a step
    micro: int | str  # rows in a pass, `auto` or `probe`
    max_grad_norm: float
    precision: str
    theirs: Json


def read_deepspeed_json(path: str, beside: Path | None = None) -> Json:
    """The JSON object in a file. The working directory comes first, then `beside`, the configuration's folder.

    Raises ValueError, whose message says what is wrong with the file.
    """
    text = read_small_file(
        path, beside, "the path of a DeepSpeed JSON, or its content as a section", "a DeepSpeed configuration"
    )
    try:
        content = json.loads(text.decode())
    except RecursionError:
        raise ValueError(f"{path!r} is nested too deeply to be a DeepSpeed configuration") from None
    except ValueError as error:
        raise ValueError(f"{path!r} is not valid JSON ({error}); correct it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path!r} holds no JSON object; give a DeepSpeed configuration")
    return content


def conflicts(settings: Settings) -> list[str]:
    """One sentence for each key of the DeepSpeed JSON that contradicts our configuration."""
    found = [
        f"train.deepspeed.config sets {key} to {json.dumps(value)}, but {field} is {json.dumps(ours)}; "
        f"remove it there, or change {field}"
        for key, field, ours in _ours(settings)
        if (value := _get(settings.theirs, key)) not in (None, "auto", ours)
    ]
    found += [
        f"train.deepspeed.config sets {key}, which is {owner}'s to decide; remove it there"
        for key, owner in _never_theirs().items()
        if _get(settings.theirs, key) not in (None, "auto", False)
    ]
    if settings.offload_params and settings.stage != 3:
        found.append(
            f"train.deepspeed.offload_params is true, but train.deepspeed.stage {settings.stage} keeps the parameters "
            "whole on every rank; set stage 3, or offload_params false"
        )
    return found


def engine_json(settings: Settings) -> Json:
    """The configuration for `deepspeed.initialize`.

    Its batch sizes are placeholders: the loop counts the passes and ends each step itself. It holds no precision: the
    base keeps its own dtype and the adapters stay in fp32, as under the other strategies.
    """
    zero: Json = {"stage": settings.stage}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if settings.offload_params:
        zero["offload_param"] = {"device": "cpu"}
    ours = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW runs on the CPU too and needs no compiler
    }
    theirs = {k: v for k, v in settings.theirs.items() if k not in ("train_batch_size", "bf16", "fp16")}
    return _merged(_without_auto(theirs), ours)


def with_reduce_bucket(engine: Json, trained: int) -> Json:
    """The engine's configuration with a gradient buffer of at most `trained` values, unless a person set its size.

    DeepSpeed allocates the whole buffer. Its default of 5e8 values is 2 GB in fp32; adapters have a few million.
    """
    bucket = {"reduce_bucket_size": min(trained, REDUCE_BUCKET_VALUES)}
    return {**engine, "zero_optimization": {**bucket, **engine["zero_optimization"]}}


def _ours(settings: Settings) -> list[tuple[str, str, Any]]:
    """Each shared setting: DeepSpeed's key, our field, our value."""
    bf16 = "auto" if settings.precision == "auto" else settings.precision == "bf16"
    offload = "train.deepspeed.offload_"
    return [
        ("train_batch_size", "train.batch.global", settings.global_batch),
        ("train_micro_batch_size_per_gpu", "train.batch.micro", settings.micro),
        ("gradient_clipping", "train.optim.max_grad_norm", settings.max_grad_norm),
        ("bf16.enabled", "train.precision", bf16),
        ("zero_optimization.stage", "train.deepspeed.stage", settings.stage),
        ("zero_optimization.offload_optimizer.device", offload + "optimizer", _device(settings.offload_optimizer)),
        ("zero_optimization.offload_param.device", offload + "params", _device(settings.offload_params)),
    ]


def _never_theirs() -> dict[str, str]:
    """DeepSpeed's keys that a person may not set, and our field that decides the same thing."""
    return {
        "optimizer": "train.optim",
        "scheduler": "train.optim.schedule",
        "gradient_accumulation_steps": "train.batch",
        "fp16.enabled": "train.precision",
        "amp.enabled": "train.precision",
        "zero_force_ds_cpu_optimizer": "train.optim",
        "zero_optimization.zero_quantized_weights": "train.quantization",
        "zero_optimization.zero_quantized_nontrainable_weights": "train.quantization",
        "zero_optimization.zero_hpz_partition_size": "train.strategy",
    }


def _device(offloaded: bool) -> str:
    return "cpu" if offloaded else "none"


def _get(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _without_auto(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_auto(inner) for key, inner in value.items() if inner != "auto"}
    return value


def _merged(theirs: Json, ours: Json) -> Json:
    """Both configurations in one; where both have a key, ours wins."""
    merged = dict(theirs)
    for key, value in ours.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return merged
