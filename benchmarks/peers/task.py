"""What one contender is asked to do, as a JSON file between the runner and the contender's own process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from .data import Batch, Example

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Recipe:
    """The training recipe shared by all contenders: AdamW at a constant rate, LoRA without dropout."""

    learning_rate: float = 2e-4
    lora_r: int = 16
    lora_alpha: int = 32
    target_modules: tuple[str, ...] = TARGET_MODULES
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: int = 42


@dataclass(frozen=True)
class Task:
    """Train `model_folder` on `batches`, one optimizer step each, starting from the adapter in `adapter_file`."""

    model_folder: Path
    adapter_file: Path
    batches: tuple[Batch, ...]
    recipe: Recipe
    threads: int

    def save(self, path: Path) -> None:
        """Write the task as JSON."""
        values = asdict(self) | {"model_folder": str(self.model_folder), "adapter_file": str(self.adapter_file)}
        path.write_text(json.dumps(values), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Task:
        """Read what `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        recipe: dict[str, Any] = {
            field.name: tuple(value) if isinstance(value := values["recipe"][field.name], list) else value
            for field in fields(Recipe)
        }
        return Task(
            model_folder=Path(values["model_folder"]),
            adapter_file=Path(values["adapter_file"]),
            batches=tuple(tuple(_example(item) for item in batch) for batch in values["batches"]),
            recipe=Recipe(**recipe),
            threads=values["threads"],
        )


def _example(values: dict[str, object]) -> Example:
    input_ids = values["input_ids"]
    supervised_from = values["supervised_from"]
    assert isinstance(input_ids, list)
    assert isinstance(supervised_from, int)
    return Example(str(values["prompt"]), str(values["completion"]), tuple(input_ids), supervised_from)
