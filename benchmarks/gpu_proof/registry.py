"""The parts of the proof, the one that tells most first: a run that is cut off has said what matters."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .stage import Stage


@dataclass(frozen=True)
class Part:
    """seconds: after which it is ended; question: what it answers; function: in the module of `parts` named."""

    name: str
    seconds: float
    question: str
    module: str = ""
    function: str = "prove"

    def prove(self, stage: Stage) -> None:
        module: Any = importlib.import_module(f"{__package__}.parts.{self.module or self.name}")
        function: Callable[[Stage], None] = getattr(module, self.function)
        function(stage)


PARTS = {
    part.name: part
    for part in (
        Part("device", 45, "what the device is, and what training chooses on it"),
        Part("step", 60, "whether a step equals the CPU's, in fp32 and bf16"),
        Part("attention", 90, "whether packed attention equals SDPA, forward and backward"),
        Part("resume", 90, "whether a resumed run equals one without interruption"),
        Part("strategies", 120, "whether each strategy trains, saves and resumes as DDP on the CPU"),
        Part("speed-1b", 150, "tokens per second and MFU of the 1B", "speed", "prove_1b"),
        Part("layers", 150, "whether recomputed and compiled layers equal plain ones, compiled once"),
        Part("vocabulary", 45, "whether the loss over 262,144 words equals torch's"),
        Part("quantised", 60, "whether 4 and 8 bits train as their dequantised twins"),
        Part("memory", 45, "whether running out of memory ends as documented"),
        Part("plan", 90, "whether the plan foretells the memory within a tenth"),
        Part("liger", 60, "whether Liger's kernels equal transformers' layers"),
        Part("speed-4b", 150, "tokens per second and MFU of the 4B", "speed", "prove_4b"),
    )
}
SPEED = ("speed-1b", "speed-4b")
