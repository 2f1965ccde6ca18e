"""`python -m gemfleet.benchmarks.shared.child MODULE:FUNCTION TASK.json`: what `in_ranks` starts.

Events go to the standard output as JSON lines; whatever libraries print goes to the standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def main() -> None:
    """Call the function with the task."""
    target, task_file = sys.argv[1:]
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    module, _, function = target.partition(":")
    getattr(importlib.import_module(module), function)(json.loads(Path(task_file).read_text(encoding="utf-8")), tell)
    sys.stderr.flush()
    os._exit(0)  # ranks need not wait for one another's destructors


@contextmanager
def process_group(work: str) -> Iterator[int]:
    """The group of all ranks, over NCCL where there are GPUs; the rank of this process."""
    import torch
    import torch.distributed as dist

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.FileStore(str(Path(work) / "rendezvous"), ranks)  # type: ignore[attr-defined]
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks)
    try:
        yield rank
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
