"""What is trained: a size, a strategy, a precision, a shape of the batch, on so many ranks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gemfleet.train.config.schema import TrainConfig

STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")


@dataclass(frozen=True)
class TrainingCase:
    """Every row holds exactly `length` tokens in documents of `document` tokens; the end of each is supervised.

    model: a size (`tiny`, `270m`, …); rows: of each rank in a step; micro: of them in a pass
    supervised: share of a document's tokens that the loss scores; save_every: steps between checkpoints, 0: none
    """

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
        parts += [self.quantization] if self.quantization != "none" else []
        parts += [self.checkpointing] if self.checkpointing != "off" else []
        return "-".join([*parts, f"{self.ranks}rank{'s' if self.ranks > 1 else ''}"])

    @property
    def total_steps(self) -> int:
        return self.warmup + self.steps

    def config(self) -> dict[str, Any]:
        return asdict(self)

    def train_config(self, model_folder: Path) -> TrainConfig:
        """As a run would be configured, at a constant rate and without an evaluation."""
        documents = self.ranks * self.rows * -(-self.length // self.document)
        stage = {"deepspeed": {"stage": int(self.strategy[-1])}} if self.strategy.startswith("zero") else {}
        return TrainConfig.model_validate(
            {
                "model": str(model_folder),
                "data": {"train": "in memory", "eval_fraction": 0.0, "max_length": self.length},
                "batch": {"global": documents, "micro": self.micro},
                "optim": {"learning_rate": 2e-4, "schedule": "constant", "warmup_ratio": 0.0},
                "max_steps": self.total_steps,
                "precision": self.precision,
                "quantization": self.quantization,
                "strategy": "deepspeed" if stage else self.strategy,
                **stage,
                "activation_checkpointing": self.checkpointing,
                "evaluation": {"every": "never"},
                "logging": {"every": "never"},
                "checkpoint": {"every": self.save_every or "never"},
            }
        )


@dataclass(frozen=True)
class RankTask:
    """What the processes of one run are told, as a JSON file.

    profile: where rank 0 leaves a trace and a table of one step more, without its ending; None: none is made
    slow_down: waits at the end of each step, as a share of it. For tests of `compare`; never set by a suite.
    """

    case: TrainingCase
    model_folder: Path
    work_folder: Path
    profile: Path | None = None
    slow_down: float = 0.0

    def save(self, path: Path) -> None:
        values = asdict(self) | {"model_folder": str(self.model_folder), "work_folder": str(self.work_folder)}
        path.write_text(json.dumps(values | {"profile": str(self.profile) if self.profile else None}), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> RankTask:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(TrainingCase)}
        case = TrainingCase(**{name: value for name, value in values["case"].items() if name in known})
        return RankTask(
            case,
            Path(values["model_folder"]),
            Path(values["work_folder"]),
            Path(values["profile"]) if values["profile"] else None,
            values["slow_down"],
        )
