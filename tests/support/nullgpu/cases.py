"""What the ranks on pretended GPUs are asked to do; called by name in their processes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from gemfleet.train import worker
from gemfleet.train.config import TrainConfig
from gemfleet.train.interfaces import StepRows
from gemfleet.train.local_source import LocalBlockSource
from gemfleet.train.loop import Trainer
from gemfleet.train.packing import TokenBlock
from strategy_cases import FolderReporter

from .counters import counts, zero_large_copies

VOCABULARY = 1024
STEPS, SAVED_AT = 4, 2
MORE_STEPS = 2


@dataclass
class Report:
    """What a rank saw of its run.

    steps: of the resumed run; counted: what each step of the first run did; retries: of the allocator
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
        documents(8, (20, 100, 250), seed=1),
        global_batch=config.batch.global_,
        max_length=config.data.max_length,
        seed=config.seed,
        world_size=dist.get_world_size(),
    )


def train_and_resume(model: str, folder: str, changes: dict[str, Any]) -> Report:
    """Train with evaluations and checkpoints, then go on from the last one with everything made anew. Collective."""
    report = Report()
    before = counts()
    zero_large_copies("offload" in str(changes))
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
        def train_step(self, index: int, step: StepRows, data_wait_seconds: float) -> bool:
            before = counts()
            stop = super().train_step(index, step, data_wait_seconds)
            report.counted.append(counts() - before)
            return stop

    rank = dist.get_rank()
    work = folder / f"work-{rank}"
    work.mkdir(parents=True, exist_ok=True)
    with mock.patch.object(worker, "Trainer", CountingTrainer):
        result = worker.run_training(
            config, Path(config.model), source_of(config), FolderReporter(folder), rank, rank, work
        )
    return result.steps
