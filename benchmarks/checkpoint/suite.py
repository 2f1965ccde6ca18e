"""Two ranks do stand-in steps (matrix products on one core each) and save; the store runs on this machine's head node.

Prints what a step without a save takes, by how much one with a save is longer (copying the state in memory is a part of
that), how long the checkpoint then takes from the first rank's first byte to its commit, and the throughput into the
head beside that of a plain socket copy to the same disk in the same run. One JSON line ends the output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..shared.record import new_record, write_stamped
from .socket_copy import copy_seconds

MIB = 2**20
PLAIN_STEPS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mib", type=int, default=400, help="size of a checkpoint [400]")
    parser.add_argument("--saves", type=int, default=20, help="checkpoints to save [20]")
    parser.add_argument("--folder", type=Path, help="where the head's disk is measured [a temporary folder]")
    parser.add_argument("--out", type=Path, help="folder for a JSON record [none is kept]")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print a table and the JSON line."""
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="gemfleet-bench-") as folder:
        facts = measure(arguments.mib * MIB, arguments.saves, Path(folder))
    print_table(facts)
    config = {"mib": arguments.mib, "saves": arguments.saves, "ranks": 2}
    if arguments.out is not None:
        write_stamped(new_record("checkpoint", f"{arguments.mib}mib", config, results=facts), arguments.out)
    print(json.dumps({"suite": "checkpoint", **facts}))
    return 0


def measure(size: int, saves: int, folder: Path) -> dict[str, Any]:
    """The figures of one run on a Ray cluster of this machine, which ends with it."""
    import ray
    from gemfleet.cluster.checkpoint_store.actor import StorePolicy, start_store
    from gemfleet.cluster.checkpoint_store.client import StoreClient
    from gemfleet.cluster.local import connect

    connection = connect("local", workers=2)
    try:
        store = StoreClient(start_store("bench", folder / "run", None, StorePolicy(keep=1)))
        store = store.attempt(store.begin_attempt())
        writer = ray.remote(save_often).options(num_cpus=1)
        before = copy_seconds(size, folder)
        ranks = [writer.remote(store, rank, size // 2, saves) for rank in (0, 1)]
        timings = ray.get(ranks)
        memory = ray.get(store.store.handle.peak_memory_bytes.remote())
        plain = min(before, copy_seconds(size, folder))
    finally:
        connection.close()
    return summary(size, saves, timings, plain, memory)


def save_often(store: Any, rank: int, size: int, saves: int) -> list[dict[str, float]]:
    """What one rank measures: it copies its half of the state, hands it over, and goes on with steps meanwhile."""
    import torch
    from gemfleet.launcher.uploads import CheckpointUploads

    torch.set_num_threads(1)
    state = {f"layer-{n}": torch.rand(size // 8 // 4) for n in range(8)}
    timings: list[dict[str, float]] = []

    def send(step: int, folder: Path, metrics: Mapping[str, float]) -> None:
        timings[step - 1]["began"] = time.perf_counter()
        store.upload(step, folder, rank, (0, 1))
        timings[step - 1]["ended"] = time.perf_counter()

    with tempfile.TemporaryDirectory() as work:
        uploads = CheckpointUploads(send, Path(work), print)
        for step in range(1, saves + 1):
            uploads.wait()  # saves far apart: what is measured is one save, not the queue behind it
            while step > 1 and step - 1 not in [manifest.step for manifest in store.manifests()]:
                time.sleep(0.01)  # the other rank is not done
            plain = statistics.median(seconds_of(stand_in_step) for _ in range(PLAIN_STEPS))
            started = time.perf_counter()
            stand_in_step()
            done = time.perf_counter()
            copied = {name: tensor.clone() for name, tensor in state.items()}
            taken = time.perf_counter()
            timings.append({"step": plain, "copy": taken - done})
            uploads.save(step, partial(write, rank, copied), {})
            timings[-1]["grown"] = time.perf_counter() - started - plain
            timings[-1]["hand_over"] = time.perf_counter() - taken
            del copied
        uploads.close(600)
    return timings


def stand_in_step() -> None:
    """Some tenths of a second of one core."""
    import torch

    matrix = torch.ones(1024, 1024)
    for _ in range(8):
        matrix = (matrix @ matrix).clamp_(max=1.0)


def seconds_of(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def write(rank: int, state: Mapping[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(dict(state), folder / f"rank-{rank}.safetensors")


def summary(size: int, saves: int, timings: list[list[dict[str, float]]], plain: float, memory: int) -> dict[str, Any]:
    """Medians over saves. An upload counts from the first rank's beginning to the last one's end, by the same clock."""
    saved = [[rank[n] for rank in timings] for n in range(saves)]
    upload = statistics.median(max(e["ended"] for e in save) - min(e["began"] for e in save) for save in saved)
    return {
        "mib": size // MIB,
        "saves": saves,
        "step_seconds": statistics.median(entry["step"] for rank in timings for entry in rank),
        "step_grows_by_seconds": statistics.median(entry["grown"] for rank in timings for entry in rank),
        "step_grows_beyond_copy_seconds_worst": max(e["grown"] - e["copy"] for rank in timings for e in rank),
        "copy_seconds": statistics.median(entry["copy"] for rank in timings for entry in rank),
        "hand_over_seconds_worst": max(entry["hand_over"] for rank in timings for entry in rank),
        "upload_seconds": upload,
        "store_mib_per_second": size / MIB / upload,
        "socket_mib_per_second": size / MIB / plain,
        "store_of_socket": plain / upload,
        "store_peak_memory_mib": memory / MIB,
    }


def print_table(facts: Mapping[str, Any]) -> None:
    print(f"{facts['saves']} checkpoints of {facts['mib']} MiB from 2 ranks", file=sys.stderr)
    for name in (key for key in facts if isinstance(facts[key], float)):
        print(f"  {name:26} {facts[name]:10.3f}", file=sys.stderr)
