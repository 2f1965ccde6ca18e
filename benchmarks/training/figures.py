"""From the raw steps of a record's runs to its figures. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from gemfleet.train.step.record import SUITE_FIGURES

from ..shared.quantiles import quantile, spread
from ..shared.record import Record, Run


def figures(record: Record) -> dict[str, Any]:
    """Figures over the measured steps of all runs; empty where none ended well.

    Each figure that `StepRecord` marks for the suites comes as its median. MFU is model FLOPs over what the device
    could do in that time, HFU adds what was recomputed: by its data sheet (`rated`) where the device has one, else by
    the matrix products measured in the same process (`measured ceiling`). `share_of_ceiling` is by the latter always.
    """
    runs = record.good_runs
    if not runs:
        return {}
    ranks = int(record.config["ranks"])
    steps = [step for run in runs for step in _steps(run, record.warmup)]
    seconds = [step["seconds"] for step in steps]
    return {
        **{name: quantile([step[name] for step in steps], 0.5) for name in SUITE_FIGURES if name in steps[0]},
        "step_seconds": spread(seconds),
        "tokens_per_second": spread([step["tokens"] / step["seconds"] for step in steps]),
        **utilisation(runs, record.warmup, ranks),
        "peak_memory_bytes": max(run.facts["peak_memory_bytes"] for run in runs),
        "share_waiting_for_data": share(steps, "data_wait_seconds"),
        "share_waiting_for_communication": share(steps, "communication_seconds"),
        "share_waiting_for_checkpoints": share(steps, "checkpoint_wait_seconds"),
        "wire_bytes_per_step": runs[-1].facts["wire_bytes_per_step"],
        "first_loss": runs[0].losses[0],
        "last_loss": runs[0].losses[-1],
    }


def utilisation(runs: list[Run], warmup: int, ranks: int) -> dict[str, Any]:
    """FLOP/s of a rank, and what share of the device's that is. Each run is set against its own ceiling."""
    model, hardware, of_ceiling = [], [], []
    for run in runs:
        for step in _steps(run, warmup):
            rate = step["flops"] / step["seconds"] / ranks
            model.append(rate)
            hardware.append((step["flops"] + step["recomputed_flops"]) / step["seconds"] / ranks)
            of_ceiling.append(rate / run.facts["ceiling_flops_per_second"])
    ceiling = quantile([run.facts["ceiling_flops_per_second"] for run in runs], 0.5)
    rated = runs[-1].facts["rated_flops_per_second"]
    basis = rated or ceiling
    return {
        "flops_per_second_per_rank": quantile(model, 0.5),
        "ceiling_flops_per_second": ceiling,
        "share_of_ceiling": quantile(of_ceiling, 0.5),
        "mfu": quantile(model, 0.5) / basis,
        "hfu": quantile(hardware, 0.5) / basis,
        "mfu_basis": "rated" if rated else "measured ceiling",
    }


def share(steps: list[dict[str, float]], name: str) -> float:
    """Of the time from the first measured step to the last. Saving lies between steps, all else inside them."""
    total = math.fsum(step["seconds"] + step["checkpoint_wait_seconds"] for step in steps)
    return math.fsum(step[name] for step in steps) / total


def _steps(run: Run, warmup: int) -> Iterator[dict[str, float]]:
    """One record for each measured step."""
    names = [name for name, values in run.facts.items() if isinstance(values, list)]
    for index in range(warmup, len(run.step_seconds)):
        yield {
            "seconds": run.step_seconds[index],
            "tokens": run.tokens[index],
            **{name: run.facts[name][index] for name in names},
        }
