"""What one contender is given: a task, which travels to its process as JSON, its initial adapter, and a clock.

Every library draws lora_A in its own order, so the same seed alone would not make losses comparable: lora_A is drawn
once and kept in a file, lora_B is zero.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from .data import Batch

Tell = Callable[[dict[str, Any]], None]
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PEFT_PREFIX = "base_model.model."


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


def contender(train: Callable[[Task, StepClock], None]) -> Callable[[Mapping[str, Any], Tell], None]:
    """Makes of a trainer what a process of its own calls with a task as JSON."""

    def run(values: Mapping[str, Any], tell: Tell) -> None:
        import torch
        from gemfleet.train.device.memory import peak_resident_bytes

        task = Task.model_validate({name: values[name] for name in Task.model_fields})
        torch.set_num_threads(task.threads)
        train(task, StepClock(tell))
        tell({"facts": {"peak_rss_bytes": peak_resident_bytes()}})

    return run


def write_initial_adapter(model_folder: Path, recipe: Recipe, destination: Path) -> None:
    """Draw lora_A [r, in_features] fp32 for every target module, uniform in ±1/√in_features as peft does, and save it.
    Only the model's shapes are needed: it is built on the meta device, without weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder))
    generator = torch.Generator().manual_seed(recipe.seed)
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in recipe.target_modules:
            uniform = torch.rand(recipe.lora_r, module.in_features, generator=generator)
            tensors[name] = (2 * uniform - 1) * (1 / math.sqrt(module.in_features))
    save_file(tensors, destination)


def load_initial_adapter(model: Any, adapter_file: Path) -> None:
    """Copy lora_A from the file into a peft model and clear lora_B; RuntimeError unless it has just these adapters."""
    import torch
    from safetensors.torch import load_file

    left = load_file(adapter_file)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module, lora_a, _ = name.removeprefix(PEFT_PREFIX).partition(".lora_A.")
            if lora_a:
                if module not in left:
                    raise RuntimeError(f"the adapter on {module} is not in {adapter_file.name}")
                parameter.copy_(left.pop(module))
            elif ".lora_B." in name:
                parameter.zero_()
    if left:
        raise RuntimeError(f"the model has no adapter on {', '.join(sorted(left))}")


def lora_config(recipe: Recipe) -> Any:
    """The recipe as peft's configuration."""
    from peft import LoraConfig

    sizes = {"r": recipe.lora_r, "lora_alpha": recipe.lora_alpha, "lora_dropout": 0.0}
    return LoraConfig(**sizes, target_modules=list(recipe.target_modules), task_type="CAUSAL_LM")
