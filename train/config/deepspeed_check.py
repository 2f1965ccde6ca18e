"""Lets DeepSpeed itself check its configuration before a run starts: unknown keys and refused values."""

from __future__ import annotations

import difflib
import importlib
import logging
from typing import Any

from ..errors import UserError, first_line
from .deepspeed_json import engine_json
from .schema import TrainConfig

CONSTANTS = (
    *("runtime.constants", "runtime.data_pipeline.constants", "runtime.swap_tensor.constants"),
    *("runtime.activation_checkpointing.config", "compression.constants", "elasticity.constants"),
    *("profiling.constants", "autotuning.constants", "nebula.constants"),
)
SECTIONS = frozenset(
    (
        *("zero_optimization", "flops_profiler", "comms_logger", "tensorboard", "wandb", "comet", "csv_monitor", "aio"),
        *("compile", "hybrid_engine", "weight_quantization", "zenflow", "tensor_parallel"),
    )
)


def check_deepspeed(train: TrainConfig) -> None:
    """Raises UserError for a value that the engine would refuse, and for a key that it would ignore as unknown."""
    theirs = train.deepspeed.config
    if train.strategy != "deepspeed" or not isinstance(theirs, dict):
        return
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    from deepspeed.runtime.config import DeepSpeedConfig

    known = _known_keys()
    unknown = [key for key in theirs if key not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, 1)
        raise UserError(
            f"train.deepspeed.config has the key {unknown[0]!r}, which DeepSpeed does not know; "
            + (f"did you mean {close[0]!r}?" if close else "remove it")
        )
    try:
        DeepSpeedConfig(engine_json(train.deepspeed_settings()))
    except Exception as error:  # of pydantic, of DeepSpeed, or an assertion
        raise UserError(f"train.deepspeed.config is refused by DeepSpeed: {_told(error)}; correct it") from error


def _known_keys() -> set[str]:
    """Every string among DeepSpeed's constants, and the names of the sections that are classes."""
    found = set(SECTIONS)
    for name in CONSTANTS:
        try:
            constants = vars(importlib.import_module(f"deepspeed.{name}"))
        except ImportError:  # another release has them elsewhere
            continue
        found |= {value for key, value in constants.items() if key.isupper() and isinstance(value, str)}
    return found


def _told(error: Exception) -> str:
    problems: Any = getattr(error, "errors", None)
    if callable(problems):
        return "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems())
    return first_line(error)
