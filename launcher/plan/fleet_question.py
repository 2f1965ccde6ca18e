"""Reads what `gemfleet plan` is asked about: a model, a GPU, and the work of one rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.model.resolve import read_model_config
from gemfleet.train.planning import GPUS, SIZES, Device, ModelShape, Workload, shape_of_config
from gemfleet.train.planning.auto_strategy import workload_of

from .dry_run import local_model_facts


def find_shape(model: str) -> ModelShape:
    """The shape of a model, by its size (`27b`), a hub id that names the size, or a folder with a config.json.

    Raises UserError for any other name.
    """
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
    """A GPU by its name in the table. Raises UserError for an unknown one."""
    try:
        return GPUS[name.lower()]
    except KeyError:
        raise UserError(f"--gpu is {name!r}; give one of {', '.join(GPUS)}") from None


def work_of_config(
    config: TrainConfig, example_tokens: int | None, supervised: float, pictures: bool = False
) -> Workload:
    """One rank's work, by a configuration. supervised: the share of tokens that the loss scores

    pictures: whether rows hold some
    """
    dtype: Literal["bf16", "fp32"] = "fp32" if config.precision == "fp32" else "bf16"
    return replace(workload_of(config, dtype, pictures=pictures), example_tokens=example_tokens, supervised=supervised)


def context_of(value: str) -> int | Literal["auto"]:
    """`--context-parallel`: a number of GPUs, or auto. Raises UserError for anything else."""
    if value == "auto":
        return "auto"
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"--context-parallel is {value!r}; give a number of GPUs that share each pass, or auto")
    return int(value)
