"""Tells what a run would do, by its configuration and the files on this machine. Starts nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemfleet.launcher.config.cluster import WorkerRange
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.train.batch_finder.decision import planned_rows
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.config.precision import describe_precision
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.recipe import LoraConfig
from gemfleet.train.data.demo import MODEL_FOLDER
from gemfleet.train.model.resolve import read_model_config
from gemfleet.train.model.weight_files import stored_tensors
from gemfleet.train.planning import shape_of_config
from gemfleet.train.planning.auto_strategy import Settled, is_open, needs
from gemfleet.train.planning.options import DeviceKind


@dataclass(frozen=True)
class ModelFacts:
    """What the files of a model folder say, without loading the model. parameters: elements of all weights, or None"""

    folder: Path
    config: Mapping[str, Any]
    parameters: int | None
    weight_bytes: int


def describe_plan(config: LaunchConfig, runs_folder: Path, settled: Settled | None = None) -> dict[str, str]:
    """The plan: a sentence for each topic, in the order a person reads them. settled: the choice for this machine"""
    train, cluster = config.train, config.cluster
    facts = local_model_facts(train.model)
    return {
        "model": train.model if facts is None else _model_sentence(train.model, facts),
        "adapters": _adapter_sentence(train.lora, facts)
        + ("" if train.adapter is None else f"; goes on from {train.adapter}"),
        "data": f"{train.data.spoken()}, rows of at most {train.data.max_length} tokens, format {train.data.format}",
        "ranks": _ranks_sentence(cluster.workers, cluster.gpus_per_worker),
        "strategy": _strategy_sentence(config, facts, settled),
        "precision": describe_precision(train.precision),
        "base": "frozen, not quantised" if train.quantization == "none" else f"frozen, in {train.quantization}",
        "recomputation": _recomputation_sentence(train, settled),
        "batch": f"{train.batch.global_} examples a step; {_rows_sentence(train, settled)}",
        "length": f"{train.epochs:g} epochs"
        + ("" if train.max_steps is None else f", at most {train.max_steps} steps"),
        "cluster": f"address {cluster.address}; waits up to {cluster.wait_for_resources_s:g} s for room",
        "failures": f"up to {cluster.max_failures} restarts from the newest checkpoint",
        "checkpoints": f"{cluster.storage or runs_folder}/<run id>/checkpoints, every {train.checkpoint.every}, "
        + ("all kept" if cluster.keep_checkpoints is None else f"the newest {cluster.keep_checkpoints} kept"),
    }


def local_model_facts(model: str) -> ModelFacts | None:
    """Facts of a model folder on this machine. None for a hub id, or for a `demo` that is not converted yet."""
    demo = gemfleet_home() / "cache" / "models" / MODEL_FOLDER
    folder = demo if model == "demo" else Path(model).expanduser()
    if not (folder / "config.json").is_file():
        return None
    config = read_model_config(folder)
    if not list(folder.glob("*.safetensors")):
        return ModelFacts(folder, config, None, 0)
    stored = stored_tensors(folder).values()
    parameters = sum(math.prod(tensor.shape) for tensor in stored)
    return ModelFacts(folder, config, parameters, sum(tensor.nbytes for tensor in stored))


def lora_parameter_count(lora: LoraConfig, model_config: Mapping[str, Any]) -> int | None:
    """How many parameters the adapters have: r * (inputs + outputs) for each projection of each layer.

    None where the configuration lacks a dimension, or names a module that is no projection of the language model.
    """
    text = model_config.get("text_config", model_config)
    try:
        hidden, inner, layers = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
        queries = text["num_attention_heads"] * text["head_dim"]
        keys = text["num_key_value_heads"] * text["head_dim"]
    except KeyError:
        return None
    sides = {
        "q_proj": hidden + queries,
        "k_proj": hidden + keys,
        "v_proj": hidden + keys,
        "o_proj": queries + hidden,
        "gate_proj": hidden + inner,
        "up_proj": hidden + inner,
        "down_proj": inner + hidden,
    }
    names = list(sides) if lora.target_modules == "all-linear" else lora.target_modules
    if not all(name in sides for name in names):
        return None
    return int(layers * lora.r * sum(sides[name] for name in names))


def _model_sentence(name: str, facts: ModelFacts) -> str:
    if facts.parameters is None:
        return f"{name} in {facts.folder}, which holds no safetensors weights"
    return f"{name} in {facts.folder}: {facts.parameters / 1e6:,.0f} M parameters, {facts.weight_bytes / 2**30:.2f} GiB"


def _adapter_sentence(lora: LoraConfig, facts: ModelFacts | None) -> str:
    targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    count = lora_parameter_count(lora, facts.config) if facts else None
    parameters = f": {count:,} trainable parameters" if count else ""
    return f"LoRA r={lora.r}, alpha={lora.alpha:g} on {targets}{parameters}"


def _strategy_sentence(config: LaunchConfig, facts: ModelFacts | None, settled: Settled | None) -> str:
    train, cluster = config.train, config.cluster
    if not is_open(train):
        return train.strategy
    if settled is not None:
        return f"{settled.sentence.removeprefix('strategy ')} (on this machine; settled anew at each launch)"
    if facts is None or cluster.workers == "auto":
        return f"{train.strategy}, settled by the plan once model and cluster are known"
    kind: DeviceKind = "cpu" if cluster.gpus_per_worker == 0 else "cuda"
    workers = cluster.workers.min if isinstance(cluster.workers, WorkerRange) else cluster.workers
    return needs(train, shape_of_config(facts.config, train.model), workers, kind)


def _recomputation_sentence(train: TrainConfig, settled: Settled | None) -> str:
    if settled is not None:
        return settled.config.activation_checkpointing
    return "where memory needs it" if train.activation_checkpointing == "auto" else train.activation_checkpointing


def _rows_sentence(train: TrainConfig, settled: Settled | None) -> str:
    micro = train.batch.micro
    if isinstance(micro, int):
        return f"{micro} packed rows of a rank in memory at once"
    if micro == "probe":
        return "as many packed rows of a rank in memory at once as probes find to be fastest"
    if settled is None:
        return "packed rows of a rank in memory at once by the plan, or by probes where a run on GPUs earns them back"
    ranks = settled.config.data_ranks(settled.devices.ranks)
    most = math.ceil(train.batch.global_ / ranks)  # an example fills one row at most
    planned = planned_rows(train, settled, most, settled.pictures)
    sentence = f"{planned.rows} packed rows of a rank in memory at once by the plan, as {planned.reason}"
    return sentence if settled.devices.kind == "cpu" else f"{sentence}; or by probes, if the run is long enough"


def _ranks_sentence(workers: int | str | WorkerRange, gpus: int | str) -> str:
    if workers == "auto":
        return "one for every GPU of the cluster, or one for every node where there is no GPU"
    devices = {"auto": "with a GPU each where the cluster has any", 0: "on CPUs", 1: "with a GPU each"}
    number = f"{workers.min} to {workers.max}" if isinstance(workers, WorkerRange) else workers
    return f"{number}, {devices[gpus]}"
