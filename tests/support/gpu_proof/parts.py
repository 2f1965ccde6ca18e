"""The parts of the proof, the one that tells most first: a run that is cut off has said what matters."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """seconds: after which it is ended; question: what it answers; module: of `tests/gpu`, where it is not its own."""

    name: str
    seconds: float
    question: str
    module: str = ""

    @property
    def function(self) -> str:
        return f"test_{self.name.replace('-', '_')}"

    @property
    def test(self) -> str:
        """As pytest is told, below `tests/gpu`."""
        return f"test_{self.module or self.name}.py::{self.function}"


PARTS = {
    part.name: part
    for part in (
        Part("device", 45, "what the device is, and what training chooses on it"),
        Part("step", 60, "whether a step equals the CPU's, in fp32 and bf16"),
        Part("attention", 90, "whether packed attention equals SDPA, forward and backward"),
        Part("resume", 90, "whether a resumed run equals one without interruption"),
        Part("strategies", 120, "whether each strategy trains, saves and resumes as DDP on the CPU"),
        Part("speed-1b", 150, "tokens per second and MFU of the 1B", "speed"),
        Part("layers", 150, "whether recomputed and compiled layers equal plain ones, compiled once"),
        Part("vocabulary", 45, "whether the loss over 262,144 words equals torch's"),
        Part("quantised", 60, "whether 4 and 8 bits train as their dequantised twins"),
        Part("memory", 45, "whether running out of memory ends as documented"),
        Part("plan", 90, "whether the plan foretells the memory within a tenth"),
        Part("liger", 60, "whether Liger's kernels equal transformers' layers"),
        Part("speed-4b", 150, "tokens per second and MFU of the 4B", "speed"),
    )
}
