"""What the ranks on pretended GPUs are asked to do; called by name in their processes."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from gemfleet.benchmarks.shared.random_base import random_model
from gemfleet.train import worker
from gemfleet.train.batch_finder.probes.probe import worst_rows
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.packing import TokenBlock
from gemfleet.train.device.abilities import choose_dtype, current_device
from gemfleet.train.device.out_of_memory import OutOfMemoryError
from gemfleet.train.interfaces import PackedRows, StepRows
from gemfleet.train.kernels.capabilities import Choices, choose
from gemfleet.train.local.source import LocalBlockSource
from gemfleet.train.loop import Trainer
from gemfleet.train.model.gemma import prepare_layers
from gemfleet.train.planning import SIZES
from support.nullgpu.counters import counts
from support.strategy_cases import FolderReporter

VOCABULARY = 1024
STEPS, SAVED_AT = 4, 2
MORE_STEPS = 2


@dataclass
class Report:
    """What a rank saw of its run.

    steps: of the resumed run; counted: what each step of both runs did, its passes too; retries: of the allocator
    """

    steps: int = 0
    counted: list[Counter[str]] = field(default_factory=list)
    refused_launches: int = 0
    retries: int = 0
    peak_bytes: int = 0


def save_small_gemma3(folder: Path) -> Path:
    """A random Gemma 3 in bf16 whose heads have the real ones' 256 values, as kernels are chosen by that."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"] * 2,
        max_position_embeddings=4096,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    Gemma3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def documents(count: int, lengths: tuple[int, ...], seed: int = 0) -> TokenBlock:
    """Random documents of these lengths, the last two thirds of each supervised."""
    random = np.random.default_rng(seed)
    chosen = random.choice(lengths, count)
    supervised = np.concatenate([np.arange(length) >= length // 3 for length in chosen])
    ends = np.concatenate([[0], np.cumsum(chosen)]).astype(np.int64)
    return TokenBlock(random.integers(3, VOCABULARY, ends[-1]).astype(np.int32), supervised, ends)


def configuration(model: str, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "model": model,
        "data": {"train": "x.jsonl", "max_length": 256},
        "lora": {"r": 8},
        "batch": {"global": 8, "micro": 2},
        "strategy": "ddp",
        "activation_checkpointing": "off",
        "epochs": 1.0,
        "max_steps": STEPS,
        "checkpoint": {"every": SAVED_AT},
        "evaluation": {"every": SAVED_AT},
        "compile": False,
    }
    return TrainConfig.model_validate({**values, **changes})


def source_of(config: TrainConfig) -> LocalBlockSource:
    """Documents of very unequal lengths: one token, some, and nearly a row."""
    return LocalBlockSource(
        documents(64, (1, 2, 40, 90, 200)),
        {"eval": documents(8, (20, 100, 250), seed=1)},
        global_batch=config.batch.global_,
        max_length=config.data.max_length,
        seed=config.seed,
        world_size=dist.get_world_size(),
    )


def train_and_resume(model: str, folder: str, changes: dict[str, Any]) -> Report:
    """Train with evaluations and checkpoints, then go on from the last one with everything made anew. Collective."""
    report = Report()
    before = counts()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    retries = torch.cuda.memory_stats().get("num_alloc_retries", 0)
    for steps in (STEPS, STEPS + MORE_STEPS):
        report.steps = _run(configuration(model, **{**changes, "max_steps": steps}), Path(folder), report)
    report.refused_launches = (counts() - before)["refused_launches"]
    report.retries = torch.cuda.memory_stats()["num_alloc_retries"] - retries
    report.peak_bytes = torch.cuda.max_memory_reserved()
    return report


def _run(config: TrainConfig, folder: Path, report: Report) -> int:
    class CountingTrainer(Trainer):
        def passes(self, rows: PackedRows, rows_per_pass: int) -> list[PackedRows]:
            self.newest = super().passes(rows, rows_per_pass)
            return self.newest

        def train_step(self, index: int, step: StepRows, data_wait_seconds: float) -> bool:
            before = counts()
            stop = super().train_step(index, step, data_wait_seconds)
            report.counted.append(counts() - before + Counter(passes=len(self.newest)))
            return stop

    with mock.patch.object(worker, "Trainer", CountingTrainer):
        return _train(config, folder, source_of(config))


@dataclass(frozen=True)
class Chosen:
    """What a run that leaves all open would use here."""

    attention: str
    dtype: str
    compiled: bool


def choices_here(model: str) -> Chosen:
    """By the device that this process sees."""
    facts = current_device(0)
    config = configuration(model, compile="auto")
    dtype = choose_dtype(config.precision, facts)
    choices = choose(config, facts.device, dtype)
    return Chosen(choices.attention, str(dtype), choices.compile)


def runs_out_of_memory(model: str, folder: str, changes: dict[str, Any]) -> tuple[str, int]:
    """The message of the error that a run ends with, and the steps of one that follows in the same process with two
    rows in a pass: what was held is free again."""
    config = configuration(model, **{"batch": {"global": 256, "micro": 2}, "max_steps": 1, **changes})
    source = LocalBlockSource(
        documents(256, (250,)),
        {"eval": documents(256, (250,), seed=1)},
        global_batch=256,
        max_length=config.data.max_length,
        seed=config.seed,
        world_size=1,
    )
    try:
        _train(config, Path(folder) / "too-much", source)
        message = ""
    except OutOfMemoryError as error:
        message = str(error)
    return message, _run(configuration(model), Path(folder) / "fits", Report())


def _train(config: TrainConfig, folder: Path, source: LocalBlockSource) -> int:
    rank = dist.get_rank()
    work = folder / f"work-{rank}"
    work.mkdir(parents=True, exist_ok=True)
    return worker.run_training(config, Path(config.model), source, FolderReporter(folder), rank, rank, work).steps


@dataclass(frozen=True)
class PassOutcome:
    """One pass, forward and backward. milliseconds: of the host, the least of several."""

    counted: Counter[str]
    milliseconds: float


def count_passes(compiled: bool) -> PassOutcome:
    """The 1B's shape with random weights; one row of 2,048 tokens."""
    length, repeats = 2048, 5
    torch._dynamo.reset()
    shape = replace(SIZES["1b"], vision=None)
    model = random_model(shape, torch.bfloat16, torch.device("cuda", 0))
    prepare_layers(model, Choices("varlen", "torch" if compiled else "liger", compiled, "off"))
    rows = worst_rows(1, length, shape.vocabulary)
    times = []
    for repeat in range(repeats):
        model.peft_model.zero_grad()  # to None, as in the first pass of a step
        before, started = counts(), time.perf_counter()
        model.loss_sum(rows).backward()
        if repeat:
            times.append(time.perf_counter() - started)
        counted = counts() - before
    return PassOutcome(counted, 1000 * min(times))
