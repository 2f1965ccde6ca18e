"""Reads a run's file for one process: only the `train` section counts, and the launcher's sections are left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .load import beside, read_mapping, validated
from .schema import TrainConfig
from .strict import StrictModel

PLATFORM_KEYS = ("train_model_parameters", "tokenizer_parameters", "save_model", "experiment_name", "trainer", "peft")


class TrainFile(StrictModel):
    """Every key that a run's file may have. `gemfleet train` checks the values of those other than `train`."""

    train: TrainConfig
    name: Any = None
    cluster: Any = None
    output: Any = None
    predict: Any = None
    trackers: Any = None
    notify: Any = None
    api: Any = None


def load_train(path: Path, overrides: Sequence[str] = ()) -> tuple[TrainConfig, tuple[str, ...]]:
    """The `train` section, its paths found beside the file, and the names of the keys that are left alone.

    Raises UserError with one line for each problem, also for a key that no run's file has, and for the fine-tuning
    platform's JSON request, which only the launcher can read.
    """
    content = read_mapping(path)
    if is_platform_request(content):
        raise UserError(
            f"{path} is a request of the fine-tuning platform, which `python -m train` does not read; "
            f"make a configuration of it with: gemfleet convert {path} > run.yaml"
        )
    config = validated(content, path, overrides, TrainFile).train
    return beside(path, config), tuple(key for key in content if key != "train")


def is_platform_request(content: Mapping[Any, Any]) -> bool:
    """Whether a mapping is the platform's format and not a run's configuration, which has a `train` section."""
    return "train" not in content and any(key in content for key in PLATFORM_KEYS)
