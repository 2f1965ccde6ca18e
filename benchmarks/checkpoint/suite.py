"""What saving costs. Two ranks do stand-in steps (matrix products on one core each) and save; the store runs on this
machine's head node.

Told are what a step without a save takes, by how much one with a save is longer (copying the state in memory is a part
of that), for how long ranks then send until the checkpoint is committed, and the throughput into the head beside that
of plain socket copies to the same disk in between. Neither counts the removal of what was copied before. Ranks write
what they send to memory where there is a filesystem for it, as their own disk is not the head's.

  gemfleet bench checkpoint --quick
  gemfleet bench checkpoint --saves 20 --folder /mnt/disk
"""

from __future__ import annotations

import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemfleet.benchmarks.shared.suite import Add, Case, Options, Record, Run, Suite, Tick, positive

from .socket_copy import copy_seconds

MIB = 2**20
PLAIN_STEPS = 3
MEMORY = Path("/dev/shm")


class Checkpoint(Suite):
    name = "checkpoint"
    repeats = 1
    quick: Mapping[str, Any] = {"mib": 16, "saves": 2}

    def add_options(self, add: Add) -> None:
        add("--mib", type=positive, default=400, help="size of a checkpoint (default: 400)")
        add("--saves", type=positive, default=20, help="checkpoints to save in a round (default: 20)")
        add("--folder", type=Path, help="where the head's disk is measured (default: a temporary folder)")

    def cases(self, options: Options) -> Sequence[Case]:
        return [Case(f"{options.mib}mib", {"mib": options.mib, "saves": options.saves, "ranks": 2})]

    def measure(self, options: Options, case: Case, run: Run, tick: Tick) -> None:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="gemfleet-bench-") as folder:
            run.facts = save_all(options.mib * MIB, options.saves, Path(folder), tick)

    def results(self, record: Record) -> dict[str, Any]:
        facts = [run.facts for run in record.good_runs]
        timings, plain = ([each for fact in facts for each in fact[name]] for name in ("timings", "plain"))
        return summary(record.config["mib"] * MIB, timings, plain, max(fact["memory"] for fact in facts))


def save_all(size: int, saves: int, folder: Path, tick: Tick) -> dict[str, Any]:
    """The raw figures of one run on a Ray cluster of this machine, which ends with it.

    Before each save the yardstick is taken again, in a Ray worker like the store and the ranks: Ray gives its workers a
    low priority, so on a machine with other work a process of our own would be measured under other conditions.
    """
    import ray
    from gemfleet.cluster.checkpoint_store.actor import StorePolicy, start_store
    from gemfleet.cluster.checkpoint_store.client import StoreClient
    from gemfleet.cluster.local import connect

    connection = connect("local", workers=2)
    try:
        store = StoreClient(start_store("bench", folder / "run", None, StorePolicy()))
        store = store.attempt(store.begin_attempt())
        ranks = [ray.remote(Rank).options(num_cpus=1).remote(store, rank, size // 2, folder) for rank in (0, 1)]
        yardstick = ray.remote(copy_seconds).options(num_cpus=0)
        plain, timings = [], []
        for step in range(1, saves + 1):
            plain.append(ray.get(yardstick.remote(size, folder)))
            timings.append(ray.get([rank.save.remote(step) for rank in ranks]))
            shutil.rmtree(store.at_hand(step))
            tick(f"save {step}")
        return {"timings": timings, "plain": plain, "memory": ray.get(store.store.handle.peak_memory_bytes.remote())}
    finally:
        connection.close()


class Rank:
    """One rank with its half of a state. Saves are far apart: what is measured is one save, not the queue behind it."""

    def __init__(self, store: Any, rank: int, size: int, meeting: Path) -> None:
        import torch
        from gemfleet.launcher.rank.checkpoint_uploads import CheckpointUploads

        torch.set_num_threads(1)
        self._store, self._rank, self._meeting = store, rank, meeting
        self._state = {f"layer-{n}": torch.rand(size // 8 // 4) for n in range(8)}
        self._work = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        self._uploads = CheckpointUploads(self._send, Path(self._work.name), print)
        self._timing: dict[str, float] = {}

    def save(self, step: int) -> dict[str, float]:
        """Some steps, one with a save at its end, and the wait until this rank's half has arrived."""
        from safetensors.torch import save_file

        self._timing = {"step": statistics.median(stand_in_step() for _ in range(PLAIN_STEPS))}
        self._meet(step)
        started = time.perf_counter()
        stand_in_step()
        done = time.perf_counter()
        carried = [{name: tensor.clone() for name, tensor in self._state.items()}]
        taken = time.perf_counter()
        self._uploads.save(step, lambda folder: save_file(carried.pop(), folder / f"rank-{self._rank}.safetensors"), {})
        ended = time.perf_counter()
        self._timing |= {"copy": taken - done, "hand_over": ended - taken, "save_step": ended - started}
        self._uploads.wait()
        return self._timing

    def _meet(self, step: int) -> None:
        """Wait for the other rank, as each step of training does."""
        (self._meeting / f"step-{step}.{self._rank}").touch()
        while not (self._meeting / f"step-{step}.{1 - self._rank}").exists():
            time.sleep(0.001)

    def _send(self, step: int, folder: Path, metrics: Mapping[str, float]) -> None:
        self._timing["began"] = time.perf_counter()
        self._store.upload(step, folder, self._rank, (0, 1))
        self._timing["ended"] = time.perf_counter()


def stand_in_step() -> float:
    """Some tenths of a second of one core; its seconds."""
    import torch

    started, matrix = time.perf_counter(), torch.ones(1024, 1024)
    for _ in range(8):
        matrix = (matrix @ matrix).clamp_(max=1.0)
    return time.perf_counter() - started


def summary(
    size: int, timings: Sequence[Sequence[Mapping[str, float]]], plain: Sequence[float], memory: int
) -> dict[str, Any]:
    """Medians over saves. `timings`: of each save, its ranks'; `plain`: the socket copy's seconds before each save. An
    upload counts as long as any rank sends, by the clock that processes share."""
    uploads = [sending_seconds([(rank["began"], rank["ended"]) for rank in save]) for save in timings]
    every = [rank for save in timings for rank in save]
    upload, copy = statistics.median(uploads), statistics.median(plain)
    medians = {"step": "step", "step_with_save": "save_step", "copy": "copy"}
    return {
        "mib": size // MIB,
        "saves": len(timings),
        **{f"{told}_seconds": statistics.median(rank[name] for rank in every) for told, name in medians.items()},
        "hand_over_seconds_worst": max(rank["hand_over"] for rank in every),
        "upload_seconds": upload,
        "store_mib_per_second": size / MIB / upload,
        "socket_mib_per_second": size / MIB / copy,
        "store_of_socket": statistics.median(p / u for p, u in zip(plain, uploads, strict=True)),
        "store_peak_memory_mib": memory / MIB,
    }


def sending_seconds(spans: Sequence[tuple[float, float]]) -> float:
    """The time that at least one of the spans covers."""
    covered, until = 0.0, -math.inf
    for began, ended in sorted(spans):
        covered += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return covered


SUITE = Checkpoint()
