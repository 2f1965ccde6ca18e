"""What `gemfleet plan` is asked about: a model, a GPU, and the work of one rank, each by its name or its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from gemfleet.launcher.config.cluster import WorkerRange
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.model.resolve import read_model_config
from gemfleet.train.planning import GPUS, SIZES, Device, ModelShape, Workload, shape_of_config
from gemfleet.train.planning.auto_strategy import workload_of

from .dry_run import local_model_facts


def find_shape(model: str) -> ModelShape:
    """One of the five sizes (`27b`, or a hub id that names it), or the config.json of a model folder here."""
    if model.lower() in SIZES:
        return SIZES[model.lower()]
    if (Path(model).expanduser() / "config.json").is_file():
        return shape_of_config(read_model_config(Path(model).expanduser()), Path(model).name)
    facts = local_model_facts(model)
    if facts is not None:
        return shape_of_config(facts.config, model)
    if model == "demo":
        return SIZES["270m"]
    named = [size for size in SIZES if f"gemma-3-{size}" in model.lower()]
    if named:
        return SIZES[named[0]]
    raise UserError(f"--model is {model!r}; give one of {', '.join(SIZES)}, or a folder with a Gemma 3 config.json")


def find_device(name: str) -> Device:
    """A GPU of the table by its name."""
    try:
        return GPUS[name.lower()]
    except KeyError:
        raise UserError(f"--gpu is {name!r}; give one of {', '.join(GPUS)}") from None


def work_of_config(config: TrainConfig, example_tokens: int | None, supervised: float) -> Workload:
    """What a configuration file says of one rank's work."""
    dtype: Literal["bf16", "fp32"] = "fp32" if config.precision == "fp32" else "bf16"
    return replace(workload_of(config, dtype), example_tokens=example_tokens, supervised=supervised)


def ranks_of(workers: int | str | WorkerRange) -> int | None:
    """The ranks that a configuration asks for, of an elastic run the fewest; None where it leaves them open."""
    if isinstance(workers, WorkerRange):
        return workers.min
    return workers if isinstance(workers, int) else None
