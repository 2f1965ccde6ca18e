"""What suites of training cases share: options, the measurement in fresh processes, figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemfleet.benchmarks.shared.models import REAL, model_folder
from gemfleet.benchmarks.shared.processes import run_steps
from gemfleet.benchmarks.shared.suite import Add, Case, Options, Record, Run, Suite, Tick, positive
from gemfleet.train.errors import UserError

from .case import TrainingCase
from .figures import figures

SLOW_DOWN_VARIABLE = "GEMFLEET_BENCH_SLOW_DOWN"


class TrainingSuite(Suite):
    """steps, threads: defaults of the options of these names; None: the cores divided by the ranks."""

    steps = 8
    threads: int | None = None
    quick: Mapping[str, Any] = {"document": 64, "steps": 3, "warmup": 1}

    def add_options(self, add: Add) -> None:
        threads = self.threads or "the cores divided by the ranks"
        add("--document", type=int, default=256, help="tokens of a document in a row; 0: typical ones (default: 256)")
        add("--threads", type=positive, default=self.threads, help=f"of a rank on a CPU (default: {threads})")
        add("--steps", type=positive, default=self.steps, help=f"measured steps of a run (default: {self.steps})")
        add("--warmup", type=positive, default=2, help="steps before them (default: 2)")
        add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA where there is one")
        add("--model-folder", type=Path, help=f"weights of the {REAL} in place of the packaged ones")

    def measure(self, options: Options, case: Case, run: Run, tick: Tick) -> None:
        wanted = getattr(options, "profile", False) and run.repeat == 0
        profile = (options.out / f"profile-{case.name}").resolve() if wanted else None
        training = TrainingCase(**case.config)
        measure_training(training, weights(training, options.model_folder), run, tick, profile)

    def results(self, record: Record) -> dict[str, Any]:
        return figures(record)

    def summary(self, records: Sequence[Record]) -> dict[str, Any]:
        known = {record.case: record.results for record in records if record.results}
        rates = {case: round(found["tokens_per_second"]["median"], 2) for case, found in known.items()}
        return {
            "results": {r.case: {"tokens_per_second": rates.get(r.case), "mfu": r.results.get("mfu")} for r in records}
        }


def weights(case: TrainingCase, given: Path | None) -> Path | None:
    """The folder of the weights. Random ones that each rank has whole need none on a GPU: they are made there."""
    in_place = case.model != REAL and (case.device, case.strategy, case.quantization) == ("cuda", "ddp", "none")
    return None if in_place else model_folder(case.model, given)


def measure_training(
    case: TrainingCase, folder: Path | None, run: Run, tick: Tick, profile: Path | None = None
) -> None:
    """Train the case once.

    folder: of the weights; None: random ones, made on the device
    profile: where a trace and a table of one step more go, without their endings
    """
    paths = {"model_folder": folder and str(folder), "profile": profile and str(profile)}
    task = {"case": case.model_dump(), "slow_down": float(os.environ.get(SLOW_DOWN_VARIABLE, "0")), **paths}
    options = {"ranks": case.ranks, "threads": case.threads, "cuda": case.device == "cuda"}
    run_steps(run, case.total_steps, tick, "gemfleet.benchmarks.training.child:train_rank", task, **options)
    if any(norm <= 0 for norm in run.facts["grad_norm"]):
        raise UserError("a step had a gradient norm of 0, so nothing was trained")


def resolved_device(wanted: str) -> str:
    """Raises UserError where CUDA is asked for and there is none."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch sees no CUDA device; use --device cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
