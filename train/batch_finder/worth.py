"""Decides whether a run can earn back the search for its micro-batch, by arithmetic on the plan's figures.

The constants are assumptions: no search has been timed on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..planning import GPUS, Device, Fleet, ModelShape, Sharing, Workload, expected_speed
from ..planning.devices import gpu_of_driver_name
from ..planning.memory import weight_bytes

EXPECTED_GAIN = 0.10  # share of the run's time that the fastest size saves against the plan's
START_SECONDS = 30.0  # until probes are ready: imports, CUDA, communication, compilation
LOADED_BYTES_PER_SECOND = 1e9
PASSES = 12  # all trials of a search take as long as so many passes of the largest size
UNKNOWN_GPU = "a100-80"  # stands for a GPU without a known data sheet


@dataclass(frozen=True)
class Worth:
    """Seconds that the run still takes, that a search may save of them, and that the search takes."""

    run_s: float
    gain_s: float
    search_s: float

    @property
    def pays(self) -> bool:
        return self.gain_s > self.search_s

    def sentence(self) -> str:
        """Why there is a search, or why there is none."""
        saved = f"of the {duration(self.run_s)} that training should take, probes may save {duration(self.gain_s)}"
        if self.pays:
            return f"{saved}, and take {duration(self.search_s)}"
        return f"{saved}, less than the {duration(self.search_s)} that they take"


def worth_of_search(
    shape: ModelShape,
    work: Workload,
    sharing: Sharing,
    ranks: int,
    gpu: str,
    steps_left: int,
    step_tokens: float,
    searches: int = 1,
) -> Worth:
    """The estimate, by the plan's speed with `work.micro` rows in a pass.

    gpu: its driver's name; steps_left: optimizer steps; step_tokens: mean tokens of a step, over all ranks
    searches: among which the gain is divided, one for each kind of GPUs
    """
    example = max(1, round(step_tokens / work.global_batch))
    speed = expected_speed(shape, replace(work, example_tokens=example), sharing, sheet_of(gpu), Fleet(ranks))
    passes = PASSES * speed.compute_seconds / speed.passes
    run = steps_left * speed.step_seconds
    search = START_SECONDS + weight_bytes(shape, work) / LOADED_BYTES_PER_SECOND + passes
    return Worth(run, EXPECTED_GAIN * run / searches, search)


def sheet_of(gpu: str) -> Device:
    """The GPU's data sheet, or that of `UNKNOWN_GPU`."""
    return gpu_of_driver_name(gpu) or GPUS[UNKNOWN_GPU]


def duration(seconds: float) -> str:
    """`0.4 s`, `40 s`, `12 min`, `3.5 h`"""
    if seconds < 100:
        return f"{max(seconds, 0.1):.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
