"""Fresh processes to measure in. Each calls one function of a suite, which tells what it finds as JSON lines.

Such a process is `python -m gemfleet.benchmarks.shared.processes MODULE:FUNCTION TASK.json`: events go to its standard
output, whatever libraries print goes to its standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gemfleet.train.errors import UserError

from .measuring import Tick
from .record import Run

Event = dict[str, Any]
Hear = Callable[[int, Event], None]
Done = Callable[[], str]


def in_ranks(
    target: str, task: Mapping[str, Any], hear: Hear, threads: int, ranks: int = 1, cuda: bool = False, done: Done = str
) -> None:
    """`target` ("module:function") is called in each process as `function(task, tell)`; the task gets a folder besides,
    as `work`. The first rank that fails ends the others, and is a UserError.

    hear: gets the rank and each event that it tells, in a thread of that rank's own; done: how far they came
    """
    with tempfile.TemporaryDirectory(prefix="bench-ranks-") as work, ThreadPoolExecutor(ranks) as pool:
        folder, failed = Path(work), list[int]()
        (folder / "task.json").write_text(json.dumps({**task, "work": work}), encoding="utf-8")
        started = [_start(target, folder, rank, ranks, threads, cuda) for rank in range(ranks)]

        def follow(rank: int) -> None:
            for line in started[rank].stdout or ():
                hear(rank, json.loads(line))
            if started[rank].wait() != 0:
                failed.append(rank)
                for other in started:  # they would wait for it in a collective
                    other.kill()

        try:
            list(pool.map(follow, range(ranks)))
        finally:
            for process in started:
                process.kill()
                process.wait()
        if failed:
            code, words = started[failed[0]].returncode, last_line(folder / f"rank-{failed[0]}.log")
            raise UserError(f"rank {failed[0]} ended with code {code}{done()}: {words}")


def run_steps(run: Run, steps: int, tick: Tick, target: str, task: Mapping[str, Any], **options: Any) -> None:
    """Fill in the run from what rank 0 tells (see `take`). UserError where it does not come to its last step."""

    def hear(rank: int, event: Event) -> None:
        if take(run, event):
            tick(f"step {len(run.step_seconds)}")

    def done() -> str:
        return f" after {len(run.step_seconds)} of {steps} steps"

    in_ranks(target, task, hear, **options, done=done)
    if len(run.step_seconds) != steps:
        raise UserError(f"rank 0 ended well{done()}")


def take(run: Run, event: Event) -> bool:
    """Whether the event was a step: `seconds`, `loss`, perhaps `tokens`, and facts of which the run has lists. Another
    event has `facts` of the whole run."""
    run.facts |= event.pop("facts", {})
    if "seconds" not in event:
        return False
    run.step_seconds.append(event.pop("seconds"))
    run.losses.append(event.pop("loss"))
    run.tokens += [event.pop("tokens")] if "tokens" in event else []
    for name, value in event.items():
        run.facts.setdefault(name, []).append(value)
    return True


def last_line(log: Path) -> str:
    """Of what a process printed, to say why it ended."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


@contextmanager
def process_group(work: str) -> Iterator[int]:
    """In a rank: the group of all ranks, over NCCL where there are GPUs. Gives the rank."""
    import torch
    import torch.distributed as dist

    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    store = dist.FileStore(str(Path(work) / "rendezvous"), ranks)  # type: ignore[attr-defined]
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks)
    try:
        yield rank
    finally:
        dist.destroy_process_group()


def _start(target: str, work: Path, rank: int, ranks: int, threads: int, cuda: bool) -> subprocess.Popen[str]:
    """The hub is out of reach; ranks on CPUs talk over the loopback. One process alone is told of no ranks: of those
    other trainers would make a group.
    """
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks} if ranks > 1 else {}
    environment = os.environ | {name: str(n) for name, n in {**numbers, "OMP_NUM_THREADS": threads}.items()}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {} if cuda else {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "gemfleet.benchmarks.shared.processes", target, str(work / "task.json")]
    with (work / f"rank-{rank}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)


def main() -> None:
    """Call the function with the task."""
    (module, _, function), task_file = sys.argv[1].partition(":"), sys.argv[2]
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(event: Event) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    getattr(importlib.import_module(module), function)(json.loads(Path(task_file).read_text(encoding="utf-8")), tell)
    sys.stderr.flush()
    os._exit(0)  # ranks need not wait for one another's destructors


if __name__ == "__main__":
    main()
