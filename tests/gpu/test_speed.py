"""Tokens per second, MFU and memory of published sizes with random weights, as `bench throughput` measures them.

Documents have lengths as instructions with answers have them, packed as a run packs them into rows of 2,048 tokens:
text, padding and what is supervised are counted apart. Six steps of two passes are measured after two.
"""

from __future__ import annotations

import gc
import tempfile
from typing import Any

import pytest
import torch
from gemfleet.benchmarks.shared.processes import take
from gemfleet.benchmarks.shared.record import Run, new_record
from gemfleet.benchmarks.training.case import TrainingCase
from gemfleet.benchmarks.training.child import measure
from gemfleet.benchmarks.training.figures import figures
from gemfleet.train.device.out_of_memory import OutOfMemoryError, told_out_of_memory
from gemfleet.train.kernels.capabilities import abilities_of
from support.gpu_proof.settings import SETTINGS
from support.gpu_proof.stage import Stage

PASSES = 2
# Of each size: rows in a pass, whether layers are compiled, and what is recomputed.
CASES = {
    "1b": ((8, "on", "off"), (8, "off", "off"), (16, "on", "selective"), (1, "on", "off")),
    "4b": ((4, "on", "off"), (4, "off", "off"), (8, "on", "selective")),
    "tiny": ((1, "off", "off"),),
}


def cases_of(model: str, device: str) -> list[TrainingCase]:
    fixed = {"model": model, "document": 0, "length": 128 if model == "tiny" else 2048, "steps": 6, "save_every": 0}
    fixed |= {"device": device, "precision": "bf16" if device == "cuda" else "fp32"}
    return [
        TrainingCase(**fixed, micro=micro, rows=PASSES * micro, compile=compiled, checkpointing=checkpointing)
        for micro, compiled, checkpointing in CASES[model]
    ]


def test_speed_1b(stage: Stage) -> None:
    _measure_all(stage, "1b")


def test_speed_4b(stage: Stage) -> None:
    _measure_all(stage, "4b")


def _measure_all(stage: Stage, model: str) -> None:
    if SETTINGS is None:
        pytest.skip("nothing is judged here: `make gpu-proof` tells these figures")
    for case in cases_of("tiny" if stage.quick else model, stage.device.type):
        layers = [
            "compiled" if case.compile == "on" else "eager",
            *([] if case.checkpointing == "off" else [case.checkpointing]),
        ]
        name = f"{case.micro} rows, {', '.join(layers)}"
        if case.compile == "on" and not abilities_of(stage.device).compiler:
            stage.skip(name, "torch finds no compiler")
            continue
        gc.collect()
        torch._dynamo.reset()
        try:
            with told_out_of_memory(case.micro):
                stage.note(**{name: measured(stage, case)})
        except OutOfMemoryError as error:
            stage.skip(name, f"out of memory: {error.detail}")


def measured(stage: Stage, case: TrainingCase) -> dict[str, Any]:
    """The figures of one case, and what was chosen."""
    run = Run(repeat=0, started_at="")
    task = {"work": tempfile.mkdtemp(dir=stage.folder), "model_folder": None, "profile": None, "slow_down": 0.0}
    measure(case, task, 0, lambda event: take(run, event))
    stage.holds(f"{case.name}: steps are taken", len(run.step_seconds) == case.total_steps, f"{len(run.step_seconds)}")
    record = new_record("throughput", case.name, case.model_dump(), case.warmup, runs=[run])
    return {**figures(record), "choices": run.facts["choices"]}
