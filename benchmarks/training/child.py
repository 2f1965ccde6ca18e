"""One rank of one measurement: training's own loop, unchanged, with the benchmark's data and reporter."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gemfleet.benchmarks.shared.ceiling import matmul_flops_per_second
from gemfleet.benchmarks.shared.models import SHAPES
from gemfleet.benchmarks.shared.processes import process_group
from gemfleet.benchmarks.shared.random_base import random_model
from gemfleet.benchmarks.shared.seams import StepReporter
from gemfleet.launcher.rank.checkpoint_uploads import CheckpointUploads
from gemfleet.train.device.abilities import choose_dtype, current_device, keep_freed_memory
from gemfleet.train.device.memory import peak_bytes, reset_peak
from gemfleet.train.interfaces import WriteCheckpoint
from gemfleet.train.kernels.capabilities import choose
from gemfleet.train.loop import Trainer
from gemfleet.train.model.gemma import prepare_layers
from gemfleet.train.step.record import SUITE_FIGURES
from gemfleet.train.step.throughput import rated_flops_per_second
from gemfleet.train.strategies import build_strategy
from gemfleet.train.worker import prepare_model
from torch.profiler import ProfilerActivity, profile

from .case import TrainingCase
from .communication import WireCounter, timed_waits
from .rows import rows_of

Tell = Callable[[dict[str, Any]], None]
CLOSE_SECONDS = 120.0
PROFILE_ROWS = 30
# Of each step's record, what a run keeps.
PER_STEP = ("loss", *(name for name in SUITE_FIGURES if name != "step_seconds"))


def train_rank(task: Mapping[str, Any], tell: Tell) -> None:
    """Measure what the task says."""
    case = TrainingCase(**task["case"])
    keep_freed_memory()
    torch.set_num_threads(case.threads)
    with process_group(task["work"]) as rank:
        measure(case, task, rank, tell)


def measure(case: TrainingCase, task: Mapping[str, Any], rank: int, tell: Tell) -> None:
    """Train all steps, then one more to count bytes, and one to profile where that is asked for. Collective.

    task: `model_folder` (None: random weights, made on the device), `work`, `profile` (a path's beginning, or None) and
    `slow_down` (see `SavingReporter`)
    """
    started, folder, work = time.perf_counter(), task["model_folder"], Path(task["work"]) / f"rank-{rank}"
    work.mkdir()
    facts, config = current_device(int(os.environ.get("LOCAL_RANK", 0))), case.train_config(folder or "random")
    dtype = choose_dtype(config.precision, facts)
    ceiling = _ceiling(facts.device, dtype)
    if folder is None:
        model, strategy = random_model(SHAPES[case.model], dtype, facts.device), build_strategy(config)
        prepare_layers(model, choose(config, facts.device, dtype))
    else:
        model, strategy = prepare_model(config, Path(folder), facts)
    source = rows_of(case, folder, int(model.peft_model.config.get_text_config().vocab_size))

    def one_more_step(context: AbstractContextManager[Any]) -> None:
        index = trainer.progress.step
        trainer.clock.start()
        with context:
            trainer.train_step(index, source.step(0, index, rank), 0.0)

    with timed_waits() as waited, SavingReporter(tell, waited, work, task["slow_down"]) as reporter:
        trainer = Trainer(config, model, strategy, source, reporter, rank, work)
        reset_peak(facts.device)
        loaded = time.perf_counter() - started
        trainer.run()
        peak = peak_bytes(facts.device)
    counted = WireCounter(case.ranks)
    one_more_step(counted if case.ranks > 1 else nullcontext())
    if task["profile"] is not None:
        one_more_step(profiled(Path(task["profile"])) if rank == 0 else nullcontext())
    if rank == 0:
        found = {
            "device": facts.name,
            "choices": choose(config, facts.device, dtype).describe(),
            "dtype": str(dtype).removeprefix("torch."),
            "load_seconds": loaded,
            "peak_memory_bytes": peak,
            "ceiling_flops_per_second": max(ceiling, _ceiling(facts.device, dtype)),
            "rated_flops_per_second": rated_flops_per_second(facts.device, dtype),
            "wire_bytes_per_step": sum(counted.sent.values()),
            "wire_bytes_by_collective": dict(counted.sent),
        }
        tell({"facts": found})
    elif facts.device.type == "cpu":
        _ceiling(facts.device, dtype)  # the same load on the machine as while rank 0 measures


class SavingReporter(StepReporter):
    """Tells of each step with what it waited for collectives, while the context is open. Saves as a run does: state is
    copied, then written behind the next steps to this machine's disk, and dropped.

    slow_down: waits at the end of each step, as a share of it. For tests of `compare`; never set by a suite.
    """

    def __init__(self, tell: Tell, waited: Callable[[], float], work: Path, slow_down: float) -> None:
        super().__init__(tell)
        self._uploads = CheckpointUploads(lambda step, folder, metrics: None, work, lambda event: None)
        self._waited, self._slow_down, self._step_began = waited, slow_down, time.perf_counter()

    def __enter__(self) -> SavingReporter:
        return self

    def __exit__(self, *error: object) -> None:
        self._tell = lambda record: None
        self._uploads.close(CLOSE_SECONDS)

    def progress(self, phase: str) -> None:
        self._step_began = time.perf_counter()

    def log_step(self, record: Mapping[str, Any]) -> None:
        kept = {name: record[name] for name in PER_STEP}
        self._tell({"seconds": record["step_seconds"], "communication_seconds": self._waited(), **kept})

    def save_checkpoint(self, step: int, write: WriteCheckpoint | None, metrics: Mapping[str, float]) -> None:
        if write is not None:
            self._uploads.save(step, write, metrics)

    def finish(self) -> None:
        self._uploads.wait()

    def should_stop(self) -> bool:
        """Asked once a step, after backward and clipping."""
        if self._slow_down:
            time.sleep(self._slow_down * (time.perf_counter() - self._step_began))
        return False


@contextmanager
def profiled(target: Path) -> Iterator[None]:
    """Writes a trace (`<target>.trace.json.gz`) and a table of the dearest operators (`<target>.operators.txt`)."""
    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        yield
    target.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(target.with_name(f"{target.name}.trace.json.gz")))
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=PROFILE_ROWS, max_name_column_width=60)
    target.with_name(f"{target.name}.operators.txt").write_text(table + "\n", encoding="utf-8")


def _ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """All ranks at the same time: what a rank reaches beside the others."""
    dist.barrier()
    return matmul_flops_per_second(device, dtype)
