"""Tokens per second, MFU and memory of published sizes with random weights, on one GPU, without network and Ray.

Documents have lengths as instructions with answers have them, packed as a run packs them into rows of 2,048 tokens:
text, padding and what is supervised are counted apart. Six steps of two passes are measured after two.

  gemfleet bench gpu-speed
  gemfleet bench gpu-speed --models 4b --repeat 3
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gemfleet.benchmarks.shared.measuring import Case, Measure
from gemfleet.benchmarks.shared.record import Record
from gemfleet.benchmarks.shared.section import Section, taken
from gemfleet.benchmarks.shared.suite import names
from gemfleet.benchmarks.training.base import TrainingSuite, measure_training, resolved_device
from gemfleet.benchmarks.training.case import TrainingCase
from gemfleet.benchmarks.training.figures import notes, table

PASSES = 2
# Of each size: rows in a pass, whether layers are compiled, and what is recomputed.
CASES = {
    "1b": ((8, True, "off"), (8, False, "off"), (16, True, "selective"), (1, True, "off")),
    "4b": ((4, True, "off"), (4, False, "off"), (8, True, "selective")),
    "tiny": ((1, False, "off"),),
}


class GpuSpeed(TrainingSuite):
    name = "gpu-speed"
    repeats = 1
    quick: Mapping[str, Any] = {"models": "tiny"}

    def add_options(self, add: Callable[..., Any]) -> None:
        add("--models", default="1b,4b", help=f"of {', '.join(CASES)} (default: 1b,4b)")
        add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA where there is one")

    def cases(self, options: Namespace) -> Sequence[Case]:
        models, device = names("--models", options.models, tuple(CASES)), resolved_device(options.device)
        return [case.as_case() for model in models for case in cases_of(model, device)]

    @contextmanager
    def measuring(self, options: Namespace) -> Iterator[Measure]:
        yield lambda case, run, tick: measure_training(TrainingCase(**case.config), None, run, tick)

    def section(self, records: Sequence[Record]) -> Section:
        return Section("Speed on one GPU", taken(records), [table(records)], notes=notes(records))


def cases_of(model: str, device: str) -> list[TrainingCase]:
    """The cases of a size. On a CPU nothing is compiled, and rows are short."""
    fixed = {"length": 2048 if device == "cuda" and model != "tiny" else 128, "document": 0, "save_every": 0}
    return [
        TrainingCase(
            model=model,
            precision="bf16" if device == "cuda" else "fp32",
            micro=micro,
            rows=PASSES * micro,
            compile=compiled and device == "cuda",
            checkpointing=checkpointing,
            device=device,
            steps=6,
            **fixed,
        )
        for micro, compiled, checkpointing in CASES[model]
    ]


SUITE = GpuSpeed()
