"""Tokens per second, MFU and memory of published sizes: the cases of `gemfleet bench gpu-speed` in this process."""

from __future__ import annotations

import gc
import tempfile
from typing import Any

import pytest
import torch
from gemfleet.benchmarks.gpu_speed.suite import cases_of
from gemfleet.benchmarks.shared.processes import take
from gemfleet.benchmarks.shared.record import Run, new_record
from gemfleet.benchmarks.training.case import TrainingCase
from gemfleet.benchmarks.training.child import measure
from gemfleet.benchmarks.training.figures import figures
from gemfleet.train.device.out_of_memory import OutOfMemoryError, told_out_of_memory
from gemfleet.train.kernels.capabilities import abilities_of
from support.gpu_proof.settings import SETTINGS
from support.gpu_proof.stage import Stage


def test_speed_1b(stage: Stage) -> None:
    _measure_all(stage, "1b")


def test_speed_4b(stage: Stage) -> None:
    _measure_all(stage, "4b")


def _measure_all(stage: Stage, model: str) -> None:
    if SETTINGS is None:
        pytest.skip("nothing is judged here: `make gpu-proof` tells these figures, or `gemfleet bench gpu-speed`")
    for case in cases_of("tiny" if stage.quick else model, stage.device.type):
        layers = [
            "compiled" if case.compile else "eager",
            *([] if case.checkpointing == "off" else [case.checkpointing]),
        ]
        name = f"{case.micro} rows, {', '.join(layers)}"
        if case.compile and not abilities_of(stage.device).compiler:
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
    record = new_record("gpu-speed", case.name, case.model_dump(), case.warmup, runs=[run])
    return {**figures(record), "choices": run.facts["choices"]}
