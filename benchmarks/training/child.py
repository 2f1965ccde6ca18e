"""`python -m ....training.child TASK.json`: one rank of one measurement.

The loop is training's own and unchanged; only its data and its reporter are the benchmark's. Rank 0 tells its parent
about each step by a JSON line on the standard output; what libraries print goes to the standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from gemfleet.train.device.abilities import choose_dtype, current_device, keep_freed_memory
from gemfleet.train.device.memory import peak_bytes, reset_peak
from gemfleet.train.loop import Trainer
from gemfleet.train.step.throughput import rated_flops_per_second
from gemfleet.train.worker import prepare_model

from .case import RankTask
from .ceiling import matmul_flops_per_second
from .communication import WaitClock, WireCounter, timed_waits
from .profile import profiled
from .reporter import MeasuringReporter
from .rows import FixedRows, token_stream


def main() -> None:
    """Measure what the task says."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    task = RankTask.load(Path(sys.argv[1]))
    rank = int(os.environ["RANK"])
    keep_freed_memory()
    torch.set_num_threads(task.case.threads)
    store = dist.FileStore(str(task.work_folder / "rendezvous"), task.case.ranks)  # type: ignore[attr-defined]
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=task.case.ranks)
    try:
        measure(task, rank, events)
    finally:
        dist.destroy_process_group()


def measure(task: RankTask, rank: int, events: TextIO) -> None:
    """Train all steps, then one more to count bytes, and one to profile where that is asked for. Collective."""
    case, started = task.case, time.perf_counter()
    facts = current_device(int(os.environ["LOCAL_RANK"]))
    config = case.train_config(task.model_folder)
    dtype = choose_dtype(config.precision, facts)
    work = task.work_folder / f"rank-{rank}"
    work.mkdir()
    ceiling = _ceiling(facts.device, dtype)
    model, strategy = prepare_model(config, task.model_folder, facts)
    stream = token_stream(task.model_folder, int(model.peft_model.config.get_text_config().vocab_size))
    source = FixedRows(case, stream)
    with timed_waits() as waits, MeasuringReporter(_tell(events, rank, waits), rank, work, task.slow_down) as reporter:
        trainer = Trainer(config, model, strategy, source, reporter, rank, work)
        reset_peak(facts.device)
        loaded = time.perf_counter() - started
        trainer.run()
        peak = peak_bytes(facts.device)
    counted = WireCounter(case.ranks)
    _one_more_step(trainer, source, rank, counted if case.ranks > 1 else nullcontext())
    if task.profile is not None:
        _one_more_step(trainer, source, rank, profiled(task.profile if rank == 0 else None))
    if rank == 0:
        found = {
            "device": facts.name,
            "dtype": str(dtype).removeprefix("torch."),
            "load_seconds": loaded,
            "peak_memory_bytes": peak,
            "ceiling_flops_per_second": max(ceiling, _ceiling(facts.device, dtype)),
            "rated_flops_per_second": rated_flops_per_second(facts.device, dtype),
            "wire_bytes_per_step": sum(counted.sent.values()),
            "wire_bytes_by_collective": dict(counted.sent),
        }
        _send(events, {"event": "finish", "facts": found})
    elif facts.device.type == "cpu":
        _ceiling(facts.device, dtype)  # the same load on the machine as while rank 0 measures


def _ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """All ranks at the same time: what a rank reaches beside the others."""
    dist.barrier()
    return matmul_flops_per_second(device, dtype)


def _one_more_step(trainer: Trainer, source: FixedRows, rank: int, context: Any) -> None:
    index = trainer.progress.step
    trainer.clock.start()
    with context:
        trainer.train_step(index, source.step(0, index, rank), 0.0)


def _tell(events: TextIO, rank: int, waits: WaitClock) -> Any:
    """What is called with the record of each step, on rank 0 by the loop."""

    def tell(record: dict[str, Any]) -> None:
        _send(events, {"event": "step", "record": record, "communication_seconds": waits.read()})

    return tell


def _send(events: TextIO, event: dict[str, Any]) -> None:
    events.write(json.dumps(event) + "\n")
    events.flush()


if __name__ == "__main__":
    main()
