"""Runs the parts in a child process, and in another for those that are left when one dies or takes too long."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

from support.gpu_proof.parts import PARTS
from support.gpu_proof.results import Result

START_SECONDS = 120.0  # libraries are imported, and the device wakes up

Start = Callable[[Sequence[str]], subprocess.Popen[str]]
Keep = Callable[[Result], None]


def prove_all(names: Sequence[str], start: Start, deadline: float, keep: Keep, patience: float = 1.0) -> list[Result]:
    """Results of all parts in their order.

    deadline: by `time.monotonic`; keep: hears of each result as it grows; patience: times a part's own seconds
    """
    results: list[Result] = []
    while len(results) < len(names) and time.monotonic() < deadline:
        left = names[len(results) :]
        child = start(left)
        try:
            found = _listen(child, len(left), deadline, keep, patience)
        finally:
            child.kill()
            code = child.wait()
        if not found:
            results += [_not_reached(name, keep, f"the process ended with code {code} at its start") for name in left]
        results += found
    return results + [_not_reached(name, keep, "the time was over") for name in names[len(results) :]]


def _listen(child: subprocess.Popen[str], parts: int, deadline: float, keep: Keep, patience: float) -> list[Result]:
    """The results of the parts that this process began. Returns when they, or it, ended, or one takes too long."""
    assert child.stdout is not None
    lines = _lines(child.stdout)
    results: list[Result] = []
    began, limit = time.monotonic(), START_SECONDS
    while len(results) < parts or results[-1].state == "running":
        current = results[-1] if results and results[-1].state == "running" else None
        try:
            line = lines.get(timeout=max(0.0, min(deadline, began + limit) - time.monotonic()))
        except queue.Empty:
            _end(current, "timed out", f"ended after {time.monotonic() - began:.0f} s", began, keep)
            return results
        if line is None:
            _end(current, "crashed", f"the process ended with code {child.wait()}", began, keep)
            return results
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "begin":
            part = next(part for part in PARTS.values() if part.function == event["function"])
            results.append(Result(part.name))
            began, limit = time.monotonic(), patience * part.seconds
        elif event["event"] == "end":
            _end(current, "ended", event["error"], began, keep)
        elif current is not None:
            current.take(event)
            current.seconds = time.monotonic() - began
            keep(current)
    return results


def _end(result: Result | None, state: Any, error: str | None, began: float, keep: Keep) -> None:
    if result is not None:
        result.state, result.error, result.seconds = state, error, time.monotonic() - began
        keep(result)


def _not_reached(name: str, keep: Keep, why: str) -> Result:
    result = Result(name, "not reached", error=why)
    keep(result)
    return result


def _lines(stream: IO[str]) -> queue.Queue[str | None]:
    """Lines as they come, then None."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines
