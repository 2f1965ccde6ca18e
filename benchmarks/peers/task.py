"""What one contender is given: a task, which travels to its process as JSON, and a clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from .data import Batch

Tell = Callable[[dict[str, Any]], None]
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Recipe(BaseModel):
    """The training recipe shared by all contenders: AdamW at a constant rate, LoRA without dropout."""

    model_config = ConfigDict(frozen=True)
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


class Task(BaseModel):
    """Train `model_folder` on `batches`, one optimizer step each, starting from the adapter in `adapter_file`."""

    model_config = ConfigDict(frozen=True)
    model_folder: Path
    adapter_file: Path
    batches: tuple[Batch, ...]
    recipe: Recipe
    threads: int


class StepClock:
    """Times steps. One lasts from the end of the one before it, so fetching and collating its batch are part of it."""

    def __init__(self, tell: Tell) -> None:
        self._tell, self._last = tell, 0.0

    def start(self) -> None:
        """Call once the model is ready, just before the first step."""
        from gemfleet.train.device.memory import forget_resident_peak

        forget_resident_peak()  # loading a checkpoint can peak higher than training
        self._last = time.perf_counter()

    def step_done(self, loss: float) -> None:
        """Call after the optimizer's update; `loss` is the mean over the step's supervised tokens before it."""
        self._tell({"seconds": time.perf_counter() - self._last, "loss": loss})
        self._last = time.perf_counter()
