"""Put a fixed rate of requests and many open event streams on a `gemfleet serve`; report how long answers took.

The server, the load and a writer that plays a run share this machine's cores, with whatever else runs on them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from gemfleet.train.errors import UserError
from rich.console import Console
from rich.table import Table

from ..shared.quantiles import quantile
from ..shared.record import Record, new_record, write_stamped
from .load import Result, put_load
from .registry import RUN_ID, LiveRun, fill
from .training import measure_training

RESULTS = Path(__file__).resolve().parents[1] / "results"
START_SECONDS = 60.0
RUN = f"/api/v1/runs/{RUN_ID}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m benchmarks api`."""
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second (default: 200)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--streams", type=int, default=100, help="open event streams beside them (default: 100)")
    parser.add_argument(
        "--training", action="store_true", help="instead: what one request a second costs a training run"
    )
    parser.add_argument(
        "--pairs", type=int, default=14, help="with --training, stretches watched and not (default: 14)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON record goes")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the record; the last line printed is its summary as JSON."""
    if arguments.training:
        return run_training_case(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-api-") as folder:
        home = Path(folder)
        registry = fill(home)
        with served(home) as (url, process):
            asyncio.run(put_load(url, paths(lambda: 1), 20.0, 3.0, 0, ""))  # imports and caches are warm after it
            cpu = process.cpu_times()
            live, memory = LiveRun(registry), MemoryLog(process)
            try:
                result = asyncio.run(
                    put_load(
                        url,
                        paths(lambda: live.step),
                        arguments.rate,
                        arguments.seconds,
                        arguments.streams,
                        f"{RUN}/events",
                    )
                )
            finally:
                live.close()
                memory.close()
            used = process.cpu_times()
        cores = (used.user + used.system - cpu.user - cpu.system) / arguments.seconds
    record = build_record(arguments, result, memory.sizes, cores, live.events)
    path = write_stamped(record, arguments.out)
    print_table(record)
    print(json.dumps({"suite": "api", **record.results["summary"], "record": path.name}))
    return 1 if result.failures else 0


def run_training_case(arguments: argparse.Namespace) -> int:
    record = measure_training(arguments.pairs)
    path = write_stamped(record, arguments.out)
    summary = record.results["summary"]
    print(
        f"a step took {1000 * summary['watched']['mean_seconds']:.1f} ms watched and "
        f"{1000 * summary['alone']['mean_seconds']:.1f} ms alone: {100 * summary['slow_down']:+.2f}% "
        f"(standard error {100 * summary['standard_error']:.2f}%)"
    )
    print(json.dumps({"suite": "api", "case": "training", **summary, "record": path.name}))
    return 0


def paths(step: Any) -> list[tuple[str, Any]]:
    """What a dashboard or a platform asks for, again and again."""
    return [
        ("run", lambda: RUN),
        ("metrics", lambda: f"{RUN}/metrics?since_step={max(0, step() - 20)}"),
        ("events", lambda: f"{RUN}/events?after=100&limit=50"),
    ]


class MemoryLog:
    """The resident memory of a process, every ten seconds until it is closed."""

    def __init__(self, process: psutil.Process, every_seconds: float = 10.0) -> None:
        self._process, self._every = process, every_seconds
        self._ended = threading.Event()
        self.sizes = [process.memory_info().rss]
        self._thread = threading.Thread(target=self._log, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self.sizes.append(self._process.memory_info().rss)

    def _log(self) -> None:
        while not self._ended.wait(self._every):
            self.sizes.append(self._process.memory_info().rss)


@contextmanager
def served(home: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A `gemfleet serve` over `home`: its address and its process."""
    command = [sys.executable, "-m", "gemfleet.launcher.cli", "serve", "--port", "0"]
    environment = {**os.environ, "GEMFLEET_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line.startswith("dashboard: "):
            raise UserError("`gemfleet serve` did not start; run it by hand to see why")
        url = line.split()[1].rstrip("/")
        wait_until_it_answers(url)
        yield url, psutil.Process(server.pid)
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_until_it_answers(url: str) -> None:
    from gemfleet.cluster.errors import ClusterError
    from gemfleet.launcher.api.client import ApiClient

    deadline = time.monotonic() + START_SECONDS
    with ApiClient(url) as client:
        while True:
            try:
                client.health()
            except ClusterError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return


def build_record(
    arguments: argparse.Namespace, result: Result, memory: list[int], cores: float, written: int
) -> Record:
    """Everything measured, and on what."""
    every = [seconds for kind in result.seconds.values() for seconds in kind]
    told = result.stream_events
    summary = {
        "requests": len(every),
        "failures": result.failures,
        "p50_ms": 1000 * quantile(every, 0.5),
        "p99_ms": 1000 * quantile(every, 0.99),
        "max_ms": 1000 * max(every),
        "server_cores": cores,
        "memory_mib": [round(size / 2**20, 1) for size in memory],
        "streams": len(told),
        "events_written": written,
        "events_told": {"least": min(told, default=0), "most": max(told, default=0)},
    }
    found = {
        "summary": summary,
        "by_kind": {kind: _figures(seconds) for kind, seconds in result.seconds.items()},
        "load_average": [round(load, 2) for load in psutil.getloadavg()],
    }
    config = {"rate": arguments.rate, "seconds": arguments.seconds, "streams": arguments.streams}
    return new_record("api", "load", config, results=found)


def _figures(seconds: list[float]) -> dict[str, float]:
    return {
        "requests": len(seconds),
        "mean_ms": 1000 * statistics.fmean(seconds),
        **{f"p{round(100 * q)}_ms": 1000 * quantile(seconds, q) for q in (0.5, 0.9, 0.99)},
        "max_ms": 1000 * max(seconds),
    }


def print_table(record: Record) -> None:
    table = Table("request", "count", "p50 ms", "p90 ms", "p99 ms", "max ms")
    for kind, figures in record.results["by_kind"].items():
        numbers = [f"{figures[name]:.1f}" for name in ("p50_ms", "p90_ms", "p99_ms", "max_ms")]
        table.add_row(kind, str(figures["requests"]), *numbers)
    console = Console()
    console.print(table)
    summary = record.results["summary"]
    console.print(
        f"{summary['streams']} streams were told {summary['events_told']['least']} to {summary['events_told']['most']} "
        f"events; the server used {summary['server_cores']:.2f} cores and {summary['memory_mib'][0]:.0f} MiB before, "
        f"{summary['memory_mib'][-1]:.0f} MiB after; load average {record.results['load_average'][0]}"
    )
