"""The key of a found micro-batch: all that it depends on, from model and adapters to devices and versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from gemfleet.cluster.inventory import only_on
from gemfleet.launcher.placement import Placement
from gemfleet.launcher.plan.node_devices import device_facts
from gemfleet.train.batch_finder.cache import cache_key
from gemfleet.train.batch_finder.finder import Variant
from gemfleet.train.checkpoint.state import versions
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.model.resolve import read_model_config

# Fields of the training section that change neither memory nor the speed of a pass.
IRRELEVANT = {"model", "data", "optim", "epochs", "max_steps", "evaluation", "checkpoint", "seed", "batch"}


def batch_key(
    config: TrainConfig,
    variants: Sequence[Variant],
    placement: Placement,
    model_folders: Mapping[str, str],
    folder: Path,
    gpu: str = "",
) -> str:
    """The key under which the cache keeps this run's micro-batch. folder: the model's, on the head

    gpu: the kind of GPUs that has this micro-batch, where there are several
    """
    values = config.model_dump(mode="json", by_alias=True)
    limits = {"memory": config.batch.memory_limit_bytes, "margin": config.batch.memory_margin}
    return cache_key(
        {
            "model": read_model_config(folder),
            "train": {name: value for name, value in values.items() if name not in IRRELEVANT},
            "variants": [variant.name for variant in variants],
            "max_length": config.data.max_length,
            "global": config.batch.global_,
            "data": values["data"],
            "limits": limits,
            "placement": placement.describe(),
            "nodes": sorted(map(str, _nodes(model_folders))),
            "versions": versions(),
            **({"gpu": gpu} if gpu else {}),
        }
    )


def _nodes(model_folders: Mapping[str, str]) -> list[dict[str, Any]]:
    """The devices of each node on which a rank may run."""
    task = ray.remote(device_facts)
    calls = [task.options(num_cpus=0, **only_on(node)).remote() for node in model_folders]
    facts: list[dict[str, Any]] = ray.get(calls)
    return facts
