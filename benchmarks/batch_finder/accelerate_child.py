"""accelerate's `find_executable_batch_size` on the same model, rows and cap: as its documentation shows it.

The whole training function, loading included, is decorated and starts again with nine tenths of the size after each
out-of-memory. The cap is the resident set, as for gemfleet: a step that went beyond it raises what torch's allocator
raises. Prints one JSON line: the size, the calls and the seconds until a step at that size was done.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    task: dict[str, Any] = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    started = time.perf_counter()
    rows, calls = find(task)
    seconds = time.perf_counter() - started
    answers.write(json.dumps({"rows": rows, "calls": calls, "seconds": seconds}) + "\n")
    answers.close()


def find(task: dict[str, Any]) -> tuple[int, int]:
    """The first size whose step succeeds, and how many sizes were tried."""
    from accelerate.utils import find_executable_batch_size
    from gemfleet.train.batch_finder.probes.probe import Probe
    from gemfleet.train.config.schema import TrainConfig
    from gemfleet.train.device.abilities import prepare_process

    prepare_process(1)
    config = TrainConfig.model_validate_json(json.dumps(task["config"]))
    calls = 0

    @find_executable_batch_size(starting_batch_size=task["largest_rows"])  # type: ignore[untyped-decorator]
    def train(batch_size: int) -> int:
        nonlocal calls
        calls += 1
        peak, _ = Probe(config, Path(task["model_folder"]), 0).measure(batch_size)
        if peak > task["cap_bytes"]:
            raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory: {peak} bytes resident")
        return batch_size

    return int(train()), calls


if __name__ == "__main__":
    main()
