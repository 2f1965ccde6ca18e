"""Fresh processes to measure in. Each calls one function of a suite, which tells what it finds as JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gemfleet.train.errors import UserError

from .measuring import Tick
from .record import Run

Hear = Callable[[int, dict[str, Any]], None]


class ProcessError(UserError):
    """The first of some ranks that failed. words: the last line it printed"""

    def __init__(self, rank: int, code: int, words: str) -> None:
        super().__init__(f"rank {rank} ended with code {code}: {words}")
        self.rank, self.code, self.words = rank, code, words


def in_ranks(
    target: str, task: Mapping[str, Any], hear: Hear, ranks: int = 1, threads: int = 1, cuda: bool = False
) -> None:
    """`target` ("module:function") is called in each of `ranks` processes as `function(task, tell)`.

    hear: gets the rank and each event that it tells, in a thread of that rank's own
    The task gets a folder of all ranks besides, as `work`. The first rank that fails ends the others.
    """
    with tempfile.TemporaryDirectory(prefix="bench-ranks-") as work:
        folder = Path(work)
        (folder / "task.json").write_text(json.dumps({**task, "work": work}), encoding="utf-8")
        started = [_start(target, folder, rank, ranks, threads, cuda) for rank in range(ranks)]
        failed: list[int] = []

        def follow(rank: int) -> None:
            stream = started[rank].stdout
            assert stream is not None
            for line in stream:
                hear(rank, json.loads(line))
            if started[rank].wait() != 0:
                failed.append(rank)
                for other in started:  # they would wait for it in a collective
                    other.kill()

        with ThreadPoolExecutor(ranks) as pool:
            try:
                list(pool.map(follow, range(ranks)))
            finally:
                for process in started:
                    process.kill()
                    process.wait()
        if failed:
            raise ProcessError(failed[0], started[failed[0]].returncode, last_line(folder / f"rank-{failed[0]}.log"))


def answer(target: str, task: Mapping[str, Any], threads: int = 1) -> dict[str, Any]:
    """The last event of a function in one process."""
    events: list[dict[str, Any]] = []
    in_ranks(target, task, lambda _, event: events.append(event), threads=threads)
    return events[-1]


def run_steps(run: Run, steps: int, tick: Tick, target: str, task: Mapping[str, Any], **options: Any) -> None:
    """Fill in the run from what rank 0 tells (see `take`). UserError where it does not come to its last step."""

    def hear(rank: int, event: dict[str, Any]) -> None:
        if take(run, event):
            tick(f"step {len(run.step_seconds)}")

    try:
        in_ranks(target, task, hear, **options)
    except ProcessError as failed:
        done = f"after {len(run.step_seconds)} of {steps} steps"
        raise UserError(f"rank {failed.rank} ended with code {failed.code} {done}: {failed.words}") from failed
    if len(run.step_seconds) != steps:
        raise UserError(f"rank 0 ended well after {len(run.step_seconds)} of {steps} steps")


def take(run: Run, event: dict[str, Any]) -> bool:
    """Whether the event was a step: its `seconds`, `loss`, perhaps `tokens`, and facts of which there is a list in the
    run. Another event has `facts` of the whole run."""
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


def _start(target: str, work: Path, rank: int, ranks: int, threads: int, cuda: bool) -> subprocess.Popen[str]:
    """The hub is out of reach; ranks on CPUs talk over the loopback."""
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **({} if cuda else {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}),
    }
    command = [sys.executable, "-m", "gemfleet.benchmarks.shared.child", target, str(work / "task.json")]
    with (work / f"rank-{rank}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
