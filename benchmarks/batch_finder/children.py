"""What runs in fresh processes: accelerate's search, and training at the size that was found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gemfleet.benchmarks.shared.seams import FixedSteps, StepReporter
from gemfleet.train.batch_finder.probes.probe import Probe, worst_rows
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.device.abilities import prepare_process
from gemfleet.train.device.memory import peak_resident_bytes
from gemfleet.train.interfaces import StepRows
from gemfleet.train.worker import run_training

Tell = Callable[[dict[str, Any]], None]
STEPS, PASSES = 3, 2


def accelerate(task: Mapping[str, Any], tell: Tell) -> None:
    """accelerate's `find_executable_batch_size` on the same model, rows and cap, as its documentation shows it.

    The whole training function, loading included, is decorated and starts again with nine tenths of the size after each
    out-of-memory. The cap is the resident set, as for gemfleet: a step that went beyond it raises what torch's
    allocator raises. Tells the size, the sizes tried, and the seconds until a step at that size was done.
    """
    from accelerate.utils import find_executable_batch_size

    started, calls, config = time.perf_counter(), 0, _config(task)

    @find_executable_batch_size(starting_batch_size=task["largest_rows"])  # type: ignore[untyped-decorator]
    def train(batch_size: int) -> int:
        nonlocal calls
        calls += 1
        peak, _ = Probe(config, Path(task["model_folder"]), 0).measure(batch_size)
        if peak > task["cap_bytes"]:
            raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory: {peak} bytes resident")
        return batch_size

    found = int(train())
    tell({"rows": found, "trials": calls, "memory_trials": calls, "seconds": time.perf_counter() - started})


def training(task: Mapping[str, Any], tell: Tell) -> None:
    """Training as a run has it, on rows as bad as rows can be; tells its peak resident set and its steps."""
    config, folder, work = _config(task), Path(task["model_folder"]), Path(task["work"])
    text = json.loads((folder / "config.json").read_text())
    vocabulary = int(text.get("text_config", text)["vocab_size"])
    rows = worst_rows(PASSES * config.batch.rows_per_pass, config.data.max_length, vocabulary)
    step = StepRows(rows, rows.row_count, len(rows.tokens), rows.supervised_tokens)
    source = FixedSteps(STEPS, lambda number, rank: step, evaluation=rows)
    result = run_training(config, folder, source, StepReporter(folder=work / "checkpoints"), 0, 0, work)
    tell({"peak_bytes": peak_resident_bytes(), "steps": result.steps})


def _config(task: Mapping[str, Any]) -> TrainConfig:
    prepare_process(1)
    return TrainConfig.model_validate_json(json.dumps(task["config"]))
