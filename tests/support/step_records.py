"""Records of steps and evaluations as rank 0 makes them."""

from __future__ import annotations

from typing import Any

from gemfleet.train.step.record import EvalRecord, StepRecord


def a_step(**changes: Any) -> StepRecord:
    """A step of four ranks, of which the last has no counter of its use."""
    given: dict[str, Any] = {
        "step": 3,
        "total_steps": 8,
        "epoch": 0.375,
        "epochs": 1.0,
        "loss": 2.5,
        "grad_norm": 1.5,
        "learning_rate": 2e-4,
        "mean_loss": 2.75,
        "step_seconds": 2.0,
        "data_wait_seconds": 0.5,
        "checkpoint_wait_seconds": 0.25,
        "raw_tokens": 800,
        "tokens": 200,
        "supervised_tokens": 50,
        "world_size": 4,
        "peak_memory_bytes": 1,
        "flops": 8e12,
        "recomputed_flops": 2e12,
        "rated_flops_per_second": 1e13,
        "memory_bytes": [1, 2, 3, 4],
        "memory_total_bytes": [9] * 4,
        "utilisation": [0.5, 0.75, 1.0, None],
        "seconds_left": 10.0,
        "examples": 6,
    }
    return StepRecord(**{**given, **changes})


def an_evaluation() -> EvalRecord:
    """Of two sets."""
    position: dict[str, Any] = {"step": 3, "total_steps": 8, "epoch": 0.375, "epochs": 1.0}
    return EvalRecord(**position, eval_loss=2.25, eval_runtime=0.5, eval_losses={"chat": 2.0, "code": 2.5})
