"""A person's own DeepSpeed JSON beside our settings: what may stand in it, and what the engine gets in the end.

The training loop owns batch, optimizer, precision and clipping, so a DeepSpeed file that sets them otherwise is refused
by name. "auto", transformers' word for "as the trainer says", is accepted anywhere. Everything else is passed on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .schema import DeepSpeedConfig, TrainConfig

Json = dict[str, Any]
MAX_FILE_BYTES = 1 << 20
REDUCE_BUCKET_VALUES = 5 * 10**8  # DeepSpeed's own


def read_deepspeed_json(path: str, beside: Path | None = None) -> Json:
    """The object in a DeepSpeed file, looked for in the working directory and then in the configuration's folder.

    ValueError says what is wrong with it.
    """
    file = Path(path).expanduser()
    if not file.exists() and beside is not None:
        file = beside / path
    if not file.is_file():
        raise ValueError(f"{path!r} is not a file; give the path of a DeepSpeed JSON, or its content as a section")
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path!r} cannot be read ({error.strerror or error}); check its permissions") from None
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"{path!r} is larger than 1 MiB; give a DeepSpeed configuration")
    try:
        content = json.loads(text.decode())
    except RecursionError:
        raise ValueError(f"{path!r} is nested too deeply to be a DeepSpeed configuration") from None
    except ValueError as error:
        raise ValueError(f"{path!r} is not valid JSON ({error}); correct it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path!r} holds no JSON object; give a DeepSpeed configuration")
    return content


def conflicts(train: TrainConfig) -> list[str]:
    """One sentence for every setting of the DeepSpeed configuration that contradicts ours."""
    settings = train.deepspeed
    found = [
        f"train.deepspeed.config sets {key} to {json.dumps(value)}, but {field} is {json.dumps(ours)}; "
        f"remove it there, or change {field}"
        for key, field, ours in _ours(train)
        if (value := _get(_theirs(settings), key)) not in (None, "auto", ours)
    ]
    found += [
        f"train.deepspeed.config sets {key}, which is {owner}'s to decide; remove it there"
        for key, owner in _never_theirs().items()
        if _get(_theirs(settings), key) not in (None, "auto", False)
    ]
    if settings.offload_params and settings.stage != 3:
        found.append(
            f"train.deepspeed.offload_params is true, but train.deepspeed.stage {settings.stage} keeps the parameters "
            "whole on every rank; set stage 3, or offload_params false"
        )
    return found


def engine_json(train: TrainConfig) -> Json:
    """What `deepspeed.initialize` gets. Batch sizes are placeholders: the loop counts passes and ends steps itself.

    Precision is left out: the base stays in its own dtype and the adapters in fp32, as under the other strategies.
    """
    settings = train.deepspeed
    zero: Json = {"stage": settings.stage}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if settings.offload_params:
        zero["offload_param"] = {"device": "cpu"}
    ours = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.optim.max_grad_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # AdamW is torch's, on the CPU too: no compiler is needed
    }
    theirs = {k: v for k, v in _theirs(settings).items() if k not in ("train_batch_size", "bf16", "fp16")}
    return _merged(_without_auto(theirs), ours)


def with_reduce_bucket(engine: Json, trained: int) -> Json:
    """The buffer in which gradients are reduced, sized for so many trained values unless a person has set it.

    DeepSpeed allocates it whole, for 5e8 values by default: 2 GB in fp32, where adapters have a few million.
    """
    bucket = {"reduce_bucket_size": min(trained, REDUCE_BUCKET_VALUES)}
    return {**engine, "zero_optimization": {**bucket, **engine["zero_optimization"]}}


def _theirs(settings: DeepSpeedConfig) -> Json:
    """The person's own configuration; validation has replaced a file's path by its content."""
    assert not isinstance(settings.config, str)
    return settings.config or {}


def _ours(train: TrainConfig) -> list[tuple[str, str, Any]]:
    """DeepSpeed's key, our field, our value."""
    settings = train.deepspeed
    offload = "train.deepspeed.offload_"
    return [
        ("train_batch_size", "train.batch.global", train.batch.global_),
        ("train_micro_batch_size_per_gpu", "train.batch.micro", train.batch.micro),
        ("gradient_clipping", "train.optim.max_grad_norm", train.optim.max_grad_norm),
        ("bf16.enabled", "train.precision", train.precision == "bf16" if train.precision != "auto" else "auto"),
        ("zero_optimization.stage", "train.deepspeed.stage", settings.stage),
        ("zero_optimization.offload_optimizer.device", offload + "optimizer", _device(settings.offload_optimizer)),
        ("zero_optimization.offload_param.device", offload + "params", _device(settings.offload_params)),
    ]


def _never_theirs() -> dict[str, str]:
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
    """Ours over theirs, section by section."""
    merged = dict(theirs)
    for key, value in ours.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return merged
