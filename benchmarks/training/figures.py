"""From the raw steps of a record's runs to its figures, and the table of them. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from gemfleet.benchmarks.shared.record import Record, Run, median, spread
from gemfleet.benchmarks.shared.section import Table
from gemfleet.train.step.record import SUITE_FIGURES

COLUMNS = (
    *("case", "tokens/s", "p10-p90", "raw", "supervised", "per rank", "s/step", "MFU", "HFU", "of ceiling"),
    *("peak GiB", "data", "comm.", "saving", "loss", "grad norm"),
)
SHOWN = ("tokens/s", "supervised", "s/step", "MFU", "HFU", "peak GiB", "data", "comm.", "saving", "loss")


def figures(record: Record) -> dict[str, Any]:
    """Figures over the measured steps of all runs that ended well, of which there is one at least.

    Each figure that `StepRecord` marks for the suites comes as its median. MFU is model FLOPs over what the device
    could do in that time, HFU adds what was recomputed: by its data sheet (`rated`) where the device has one, else by
    the matrix products measured in the same process (`measured ceiling`). `share_of_ceiling` is by the latter always,
    each run set against its own.
    """
    runs = record.good_runs
    steps = [step for run in runs for step in _steps(run, record.warmup)]
    model = [step["flops_per_second_per_rank"] for step in steps]
    hardware = [rate * (1 + step["recomputed_flops"] / step["flops"]) for rate, step in zip(model, steps, strict=True)]
    ceiling, rated = median([step["ceiling"] for step in steps]), runs[-1].facts["rated_flops_per_second"]
    return {
        **{name: median([step[name] for step in steps]) for name in SUITE_FIGURES},
        **{name: spread([step[name] for step in steps]) for name in ("step_seconds", "tokens_per_second")},
        "ceiling_flops_per_second": ceiling,
        "share_of_ceiling": median([rate / step["ceiling"] for rate, step in zip(model, steps, strict=True)]),
        "mfu": median(model) / (rated or ceiling),
        "hfu": median(hardware) / (rated or ceiling),
        "mfu_basis": "rated" if rated else "measured ceiling",
        "peak_memory_bytes": max(run.facts["peak_memory_bytes"] for run in runs),
        "share_waiting_for_data": share(steps, "data_wait_seconds"),
        "share_waiting_for_communication": share(steps, "communication_seconds"),
        "share_waiting_for_checkpoints": share(steps, "checkpoint_wait_seconds"),
        "wire_bytes_per_step": runs[-1].facts["wire_bytes_per_step"],
        "first_loss": runs[0].losses[0],
        "last_loss": runs[0].losses[-1],
    }


def share(steps: list[dict[str, float]], name: str) -> float:
    """Of the time from the first measured step to the last. Saving lies between steps, all else inside them."""
    total = math.fsum(step["step_seconds"] + step["checkpoint_wait_seconds"] for step in steps)
    return math.fsum(step[name] for step in steps) / total


def _steps(run: Run, warmup: int) -> Iterator[dict[str, float]]:
    """One record for each measured step; `ceiling` is its run's."""
    lists = {name: values for name, values in run.facts.items() if isinstance(values, list)}
    lists |= {"step_seconds": run.step_seconds, "tokens": run.tokens}
    for index in range(warmup, len(run.step_seconds)):
        step = {name: values[index] for name, values in lists.items()}
        yield {**step, "ceiling": run.facts["ceiling_flops_per_second"]}


def table(records: Sequence[Record]) -> Table:
    """One row a case."""
    return Table(COLUMNS, [[record.case, *_cells(record)] for record in records], SHOWN)


def notes(records: Sequence[Record]) -> list[str]:
    """What the columns mean."""
    lines = [
        "tokens/s: text of a step over its wall time, all ranks, median (whiskers: 10th, 90th percentile); raw counts "
        "padding too. data, comm., saving: shares of the time that waited for them (comm.: gloo only)."
    ]
    if known := [record.results for record in records if record.results]:
        basis = ", ".join(sorted({str(results["mfu_basis"]) for results in known}))
        ceiling = max(results["ceiling_flops_per_second"] for results in known) / 1e9
        mfu = f"MFU counts LoRA's FLOPs, HFU what was recomputed too, over: {basis}."
        lines.append(f"{mfu} Largest ceiling of matrix products in the same processes: {ceiling:,.0f} GFLOP/s a rank.")
    return lines


def _cells(record: Record) -> list[str]:
    found = record.results
    if not found:
        return ["failed", *[""] * (len(COLUMNS) - 2)]
    rate = found["tokens_per_second"]
    return [
        f"{rate['median']:,.0f}",
        f"{rate['p10']:,.0f}-{rate['p90']:,.0f}",
        f"{found['raw_tokens_per_second']:,.0f}",
        f"{found['supervised_tokens_per_second']:,.0f}",
        f"{found['tokens_per_second_per_rank']:,.0f}",
        f"{found['step_seconds']['median']:.3f}",
        *(f"{found[name]:.1%}" for name in ("mfu", "hfu", "share_of_ceiling")),
        f"{found['peak_memory_bytes'] / 2**30:.2f}",
        *(f"{found[f'share_waiting_for_{name}']:.1%}" for name in ("data", "communication", "checkpoints")),
        f"{found['first_loss']:.3f} > {found['last_loss']:.3f}",
        f"{found['grad_norm']:.3g}",
    ]
