"""What one rank does, from its configuration to its result. If there are several ranks, the process group exists."""

from __future__ import annotations

import dataclasses
import logging
from functools import partial
from pathlib import Path

import torch

from .checkpoint.lineage import NEW, Lineage, base_digest
from .config.precision import precision_note
from .config.schema import TrainConfig
from .context.group import make_group
from .data.digest import DataDigest
from .device.abilities import DeviceFacts, choose_dtype, current_device
from .device.out_of_memory import apply_memory_limit, told_out_of_memory
from .errors import UserError
from .interfaces import BlockSource, FeatureKeeper, Reporter
from .kernels.attention.packed import check_attention
from .kernels.capabilities import choose
from .loop import Trainer
from .model.base_check import check_base
from .model.gemma import TrainableModel, attach_lora, prepare_layers
from .model.starting_adapter import origin_of
from .model.vision.features import PictureSource
from .model.vision.kept import tower_key
from .model.vision.sight import Sight, load_sight
from .step.outcome import TrainResult
from .step.throughput import flop_counter
from .strategies import build_strategy
from .strategies.base import Strategy

log = logging.getLogger("gemfleet.train")


def run_training(
    config: TrainConfig,
    model_folder: Path,
    source: BlockSource,
    reporter: Reporter,
    rank: int,
    local_rank: int,
    work_folder: Path,
    data: DataDigest | None = None,
    accept_changes: bool = False,
    adapter_folder: Path | None = None,
    features: FeatureKeeper | None = None,
) -> TrainResult:
    """Loads the model, attaches adapters, and trains. Collective over all ranks of the default process group.

    model_folder: a checked folder on this machine; work_folder: an existing scratch folder of this rank only
    data: the digest of all usable examples; accept_changes: resume also from a checkpoint with another lineage
    adapter_folder: of the adapter to go on from, checked; None: a new one
    features: of pictures, from other runs and for them; None: neither
    """
    facts = current_device(local_rank)
    config = config.model_copy(update={"batch": config.batch.for_gpu(facts.name)})
    dtype = choose_dtype(config.precision, facts)
    log.info("rank %d on %s (%s), %s, strategy %s", rank, facts.device, facts.name, dtype, config.strategy)
    if note := precision_note(config.precision):
        log.warning("%s", note)
    check_attention(config.attention, facts.device, dtype, len(source.pictures) > 0)
    apply_memory_limit(config.batch, facts.device)
    model, strategy = prepare_model(config, model_folder, facts, adapter_folder, source)
    if model.sight is not None:
        keep_features(config, model.sight, model_folder, source, work_folder, reporter, features)
    origin = NEW if adapter_folder is None else origin_of(adapter_folder, config.adapter or "")
    lineage = Lineage(base_digest(model_folder), data, accept_changes, origin)
    trainer = Trainer(config, model, strategy, source, reporter, rank, work_folder, lineage)
    with told_out_of_memory(config.batch.rows_per_pass):
        return trainer.run()


def prepare_model(
    config: TrainConfig,
    model_folder: Path,
    facts: DeviceFacts,
    adapter_folder: Path | None = None,
    pictures: PictureSource | None = None,
) -> tuple[TrainableModel, Strategy]:
    """The model with its adapters, and the strategy that will take it over. Training and probes both use it.

    pictures: those that it will see; None, or a source without any: the model is loaded without its eyes
    """
    dtype = choose_dtype(config.precision, facts)
    check_base(model_folder)
    strategy = build_strategy(config)
    base = strategy.load_base(model_folder, dtype, facts.device)
    sight = sight_of(config, model_folder, dtype, facts.device, pictures)
    name = base_name(config.model, model_folder)
    model = attach_lora(base, config.lora, config.seed, name, adapter_folder, config.loss_chunk, sight)
    model = in_context(model, config)
    choices = choose(config, facts.device, dtype, pictures=sight is not None)
    log.info("%s; loss in chunks of %d rows", choices.describe(), model.criterion.chunk_rows)
    prepare_layers(model, choices)
    return model, strategy


def in_context(model: TrainableModel, config: TrainConfig) -> TrainableModel:
    """The model of a rank that shares its passes with others, if the configuration says so. Collective."""
    cost = flop_counter(model, config.recomputation).cost()
    return dataclasses.replace(model, context=make_group(config.context_size, cost))


def sight_of(
    config: TrainConfig, model_folder: Path, dtype: torch.dtype, device: torch.device, pictures: PictureSource | None
) -> Sight | None:
    """For a run with pictures; None without. Raises UserError if a projector is to be trained that nothing passes."""
    trained = config.vision.train == "projector"
    if pictures is not None and len(pictures.pictures):
        return load_sight(model_folder, pictures, dtype, device, trained)
    if trained:
        raise UserError("train.vision.train is projector, but the data have no pictures; give some, or train none")
    return None


def keep_features(
    config: TrainConfig,
    sight: Sight,
    model_folder: Path,
    source: BlockSource,
    work_folder: Path,
    reporter: Reporter,
    features: FeatureKeeper | None,
) -> None:
    """Has the tower see all pictures of the run before its first step, if the configuration says so. Collective."""
    if config.vision.cache == "off" or (features is None and config.max_steps == 0):  # then it scores each once
        return
    needed = len(source.pictures) * sight.features.bytes_of_one
    if features is not None and needed > features.limit_bytes:
        log.warning(
            "the features of %d pictures take %.1f GiB, more than train.vision.head_cache (%s): the head keeps none",
            len(source.pictures),
            needed / 2**30,
            config.vision.head_cache,
        )
        features = None
    key = "" if features is None else tower_key(model_folder, sight.features.dtype, sight.features.device)
    folder, progress = work_folder / "features", partial(reporter.progress, "start")
    sight.features.keep(source.pictures, folder, progress, features, key)


def base_name(model: str, folder: Path) -> str:
    """The base's name for `adapter_config.json`: the hub id, or the folder of the weights."""
    return str(folder) if model == "demo" or Path(model).exists() else model
