"""What is trained: a size, a strategy, a precision, a shape of the batch, on so many ranks; and what the suites of such
cases share: options, the measurement in fresh processes, figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gemfleet.benchmarks.shared.models import REAL, model_folder
from gemfleet.benchmarks.shared.processes import run_steps
from gemfleet.benchmarks.shared.suite import Add, Case, Options, Record, Run, Suite, Tick, positive
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from pydantic import BaseModel, ConfigDict

from .figures import figures

SLOW_DOWN_VARIABLE = "GEMFLEET_BENCH_SLOW_DOWN"
STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
MEDIAN_DOCUMENT, SPREAD = 320, 0.7


class TrainingCase(BaseModel):
    """Every row holds exactly `length` tokens in documents of `document` tokens; the second half of each is supervised.

    model: a size (`tiny`, `270m`, …); rows: of each rank in a step; micro: of them in a pass
    document: 0: lengths as instructions with answers have them, packed as a run packs them, half of each supervised
    save_every: steps between checkpoints, 0: none
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    model: str
    strategy: str = "ddp"
    precision: str = "bf16"
    quantization: str = "none"
    length: int = 512
    document: int = 256
    micro: int = 1
    rows: int = 1
    checkpointing: str = "off"
    compile: str = "off"
    ranks: int = 1
    threads: int = 1
    device: str = "cpu"
    warmup: int = 2
    steps: int = 8
    save_every: int = 5

    @property
    def name(self) -> str:
        """What tells the cases of one suite apart, without what is the default of all."""
        parts = [self.model, self.strategy, self.precision, f"{self.length}x{self.rows}", f"micro{self.micro}"]
        parts += [part for part in (self.quantization, self.checkpointing) if part not in ("none", "off")]
        parts += ["compiled"] if self.compile == "on" else []
        parts += [] if self.document else ["typical"]
        return "-".join([*parts, f"{self.ranks}rank{'s' if self.ranks > 1 else ''}"])

    @property
    def total_steps(self) -> int:
        return self.warmup + self.steps

    @property
    def examples(self) -> int:
        """Of a step over all ranks. Documents of unequal lengths leave some room in their rows."""
        if self.document:
            return self.ranks * self.rows * -(-self.length // self.document)
        return max(1, int(0.95 * self.rows * self.length / float(np.mean(typical_lengths(4096, self.length, 0)))))

    def as_case(self) -> Case:
        return Case(self.name, self.model_dump(), self.warmup)

    def train_config(self, model: str) -> TrainConfig:
        """As a run would be configured, at a constant rate and without an evaluation."""
        optim, never = {"learning_rate": 2e-4, "schedule": "constant", "warmup_ratio": 0.0}, {"every": "never"}
        return TrainConfig.model_validate(
            {
                **strategy_fields(self.strategy),
                "model": model,
                "precision": self.precision,
                "quantization": self.quantization,
                "data": {"train": "in memory", "eval_fraction": 0.0, "max_length": self.length},
                "batch": {"global": self.examples, "micro": self.micro},
                "optim": optim,
                "max_steps": self.total_steps,
                "activation_checkpointing": self.checkpointing,
                "compile": self.compile == "on",
                "evaluation": never,
                "logging": never,
                "checkpoint": {"every": self.save_every or "never"},
            }
        )


def strategy_fields(name: str) -> dict[str, Any]:
    """Of the configuration, for one of `STRATEGIES`."""
    if name.startswith("zero"):
        return {"strategy": "deepspeed", "deepspeed": {"stage": int(name[-1])}}
    return {"strategy": name}


def typical_lengths(count: int, longest: int, seed: int) -> list[int]:
    """Of documents: log-normal, between 16 tokens and `longest`."""
    drawn = np.random.default_rng(seed).lognormal(np.log(MEDIAN_DOCUMENT), SPREAD, count)
    return [int(length) for length in np.clip(drawn, 16, longest)]


class TrainingSuite(Suite):
    """steps, threads: defaults of the options of these names; None: the cores divided by the ranks."""

    steps = 8
    threads: int | None = None
    quick: Mapping[str, Any] = {"document": 64, "steps": 3, "warmup": 1}

    def add_options(self, add: Add) -> None:
        threads = self.threads or "the cores divided by the ranks"
        add("--document", type=int, default=256, help="tokens of a document in a row; 0: typical ones (default: 256)")
        add("--threads", type=positive, default=self.threads, help=f"of a rank on a CPU (default: {threads})")
        add("--steps", type=positive, default=self.steps, help=f"measured steps of a run (default: {self.steps})")
        add("--warmup", type=positive, default=2, help="steps before them (default: 2)")
        add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA where there is one")
        add("--model-folder", type=Path, help=f"weights of the {REAL} in place of the packaged ones")

    def measure(self, options: Options, case: Case, run: Run, tick: Tick) -> None:
        training = TrainingCase(**case.config)
        # Random weights that each rank has whole need no folder on a GPU: they are made there.
        in_place = (training.device, training.strategy, training.quantization) == ("cuda", "ddp", "none")
        in_place = in_place and training.model != REAL
        profiled = getattr(options, "profile", False) and run.repeat == 0
        task = {
            "case": case.config,
            "slow_down": float(os.environ.get(SLOW_DOWN_VARIABLE, "0")),
            "model_folder": None if in_place else str(model_folder(training.model, options.model_folder)),
            "profile": str((options.out / f"profile-{case.name}").resolve()) if profiled else None,
        }
        fixed = {"ranks": training.ranks, "threads": training.threads, "cuda": training.device == "cuda"}
        target = "gemfleet.benchmarks.training.child:train_rank"
        run_steps(run, training.total_steps, tick, target, task, **fixed)
        if any(norm <= 0 for norm in run.facts["grad_norm"]):
            raise UserError("a step had a gradient norm of 0, so nothing was trained")

    def results(self, record: Record) -> dict[str, Any]:
        return figures(record)

    def summary(self, records: Sequence[Record]) -> dict[str, Any]:
        found = {record.case: record.results for record in records if record.results}
        rates = {case: results["tokens_per_second"]["median"] for case, results in found.items()}
        return {"results": {case: {"tokens_per_second": rates[case], "mfu": found[case]["mfu"]} for case in found}}


def resolved_device(wanted: str) -> str:
    """Raises UserError where CUDA is asked for and there is none."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch sees no CUDA device; use --device cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
