"""What is trained: a size, a strategy, a precision, a shape of the batch, on so many ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
from gemfleet.benchmarks.shared.measuring import Case
from gemfleet.train.config.schema import TrainConfig
from pydantic import BaseModel, ConfigDict

STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
MEDIAN_DOCUMENT, SPREAD = 320, 0.7


class TrainingCase(BaseModel):
    """Every row holds exactly `length` tokens in documents of `document` tokens; the end of each is supervised.

    model: a size (`tiny`, `270m`, …); rows: of each rank in a step; micro: of them in a pass
    document: 0: lengths as instructions with answers have them, packed as a run packs them, half of each supervised
    supervised: share of a document's tokens that the loss scores; save_every: steps between checkpoints, 0: none
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    model: str
    strategy: str = "ddp"
    precision: str = "bf16"
    quantization: str = "none"
    length: int = 512
    document: int = 256
    supervised: float = 0.5
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
        return TrainConfig.model_validate(
            {
                "model": model,
                "data": {"train": "in memory", "eval_fraction": 0.0, "max_length": self.length},
                "batch": {"global": self.examples, "micro": self.micro},
                "optim": {"learning_rate": 2e-4, "schedule": "constant", "warmup_ratio": 0.0},
                "max_steps": self.total_steps,
                "precision": self.precision,
                "quantization": self.quantization,
                **strategy_fields(self.strategy),
                "activation_checkpointing": self.checkpointing,
                "compile": self.compile == "on",
                **{name: {"every": "never"} for name in ("evaluation", "logging")},
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
