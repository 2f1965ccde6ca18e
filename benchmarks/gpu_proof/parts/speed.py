"""Tokens per second and MFU of published sizes with random weights, through training's own loop.

Documents have lengths as instructions with answers have them, packed as a run packs them: text, padding and what is
supervised are counted apart. Six steps are measured after two.
"""

from __future__ import annotations

import gc
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gemfleet.benchmarks.shared.random_base import random_model
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.device.abilities import choose_dtype
from gemfleet.train.device.out_of_memory import OutOfMemoryError, told_out_of_memory
from gemfleet.train.kernels.capabilities import abilities_of, choose
from gemfleet.train.local.source import LocalBlockSource
from gemfleet.train.loop import Trainer
from gemfleet.train.model.gemma import prepare_layers
from gemfleet.train.planning import SIZES, ModelShape
from gemfleet.train.strategies import build_strategy

from ..stage import QUICK, Stage, random_documents
from ..training import FolderReporter

LENGTH, PASSES = 2048, 2  # tokens of a row, and passes of a step
WARMUP, STEPS = 2, 6
MEDIAN_DOCUMENT, SPREAD = 320, 0.7
FIGURES = (
    *("step_seconds", "tokens_per_second", "raw_tokens_per_second", "supervised_tokens_per_second"),
    *("flops_per_second_per_rank", "mfu", "hfu"),
)


@dataclass(frozen=True)
class SpeedCase:
    """micro: rows in a pass; compiled: where the device allows it."""

    micro: int
    compiled: bool = True
    checkpointing: str = "off"

    @property
    def name(self) -> str:
        recompute = "" if self.checkpointing == "off" else f", {self.checkpointing}"
        return f"{self.micro} rows, {'compiled' if self.compiled else 'eager'}{recompute}"


CASES = {
    "1b": (
        SpeedCase(8),
        SpeedCase(8, compiled=False),
        SpeedCase(16, checkpointing="selective"),
        SpeedCase(1),
    ),
    "4b": (SpeedCase(4), SpeedCase(4, compiled=False), SpeedCase(8, checkpointing="selective")),
}


def prove_1b(stage: Stage) -> None:
    _prove(stage, "1b")


def prove_4b(stage: Stage) -> None:
    _prove(stage, "4b")


def _prove(stage: Stage, size: str) -> None:
    shape = QUICK if stage.quick else SIZES[size]
    for case in (SpeedCase(1, compiled=False),) if stage.quick else CASES[size]:
        if case.compiled and not (stage.on_cuda and abilities_of(stage.device).compiler):
            stage.skip(case.name, "this is no GPU, or torch finds no compiler")
            continue
        gc.collect()
        torch._dynamo.reset()
        if stage.on_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(stage.device)
        try:
            with told_out_of_memory(case.micro):
                _measure(stage, shape, case)
        except OutOfMemoryError as error:
            stage.skip(case.name, f"out of memory: {error.detail}")


def _measure(stage: Stage, shape: ModelShape, case: SpeedCase) -> None:
    config = config_of(stage, case)
    dtype = choose_dtype(config.precision, stage.facts)
    model = random_model(shape, dtype, stage.device)
    choices = choose(config, stage.device, dtype)
    prepare_layers(model, choices)
    reporter = FolderReporter(stage.folder / "speed")
    source = source_of(shape, config)
    trainer = Trainer(config, model, build_strategy(config), source, reporter, 0, reporter.folder)
    trainer.train()
    measured = reporter.records[WARMUP:]
    stage.holds(f"{case.name}: steps are taken", len(measured) == STEPS, f"{len(measured)} of {STEPS}")
    stage.note(**{case.name: {**figures(measured), **_memory(stage), "choices": choices.describe()}})


def config_of(stage: Stage, case: SpeedCase) -> TrainConfig:
    """A step has as many examples as fill `PASSES` passes."""
    length = 128 if stage.quick else LENGTH
    mean = float(np.mean(document_lengths(4096, length, 0)))
    return TrainConfig.model_validate(
        {
            "model": "random",
            "data": {"train": "in memory", "max_length": length},
            "batch": {"global": max(1, int(0.95 * PASSES * case.micro * length / mean)), "micro": case.micro},
            "max_steps": WARMUP + STEPS,
            "strategy": "ddp",
            "compile": case.compiled,
            "activation_checkpointing": case.checkpointing,
            "evaluation": {"every": "never"},
            "logging": {"every": "never"},
            "checkpoint": {"every": "never"},
        }
    )


def source_of(shape: ModelShape, config: TrainConfig) -> LocalBlockSource:
    count = config.batch.global_ * (WARMUP + STEPS)
    lengths = document_lengths(count, config.data.max_length, 1)
    block = random_documents(shape.vocabulary, lengths, 1)
    batch, length = config.batch.global_, config.data.max_length
    return LocalBlockSource(block, None, global_batch=batch, max_length=length, seed=config.seed, world_size=1)


def document_lengths(count: int, longest: int, seed: int) -> list[int]:
    """Log-normal, between 16 tokens and a row."""
    drawn = np.random.default_rng(seed).lognormal(np.log(MEDIAN_DOCUMENT), SPREAD, count)
    return [int(length) for length in np.clip(drawn, 16, longest)]


def figures(records: list[dict[str, Any]]) -> dict[str, float | None]:
    """The median of each figure over the measured steps; tokens computed for one of text over all of them."""
    found: dict[str, float | None] = {
        name: None if records[0][name] is None else statistics.median(record[name] for record in records)
        for name in FIGURES
    }
    computed, text = (sum(record[name] for record in records) for name in ("raw_tokens", "tokens"))
    return found | {"computed_for_one_of_text": computed / text}


def _memory(stage: Stage) -> dict[str, int]:
    return {"reserved_bytes": torch.cuda.max_memory_reserved(stage.device)} if stage.on_cuda else {}
