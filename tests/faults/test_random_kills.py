"""Kills at random moments of saving: whatever is newest is whole, is of one step only, and is at most one save old.

Two writers send a checkpoint of four files, one step after the other, into one store's folder, in a process that is
killed at a random moment; then the next process goes on. GEMFLEET_KILLS says how often (default 12). Whole runs lose a
rank or their driver GEMFLEET_RUN_KILLS times (default 2), and still end bit for bit where an undisturbed one does.
GEMFLEET_SEED repeats the moments of an earlier run, which printed its seed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gemfleet.cluster.checkpoint_store.commit import CheckpointDisk
from gemfleet.cluster.checkpoint_store.folder_shelf import FolderShelf
from gemfleet.cluster.registry.run_registry import RunRegistry
from support.fault_table import EPOCHS, SEED, Place, tell, verifies
from support.tiny_run import WAIT_SECONDS, ends, gemfleet, start, wait_for_step

RUN_KILLS = int(os.environ.get("GEMFLEET_RUN_KILLS", "2"))
KILLS = int(os.environ.get("GEMFLEET_KILLS", "12"))
FILE_BYTES = 1 << 20
WRITER = """
import hashlib, sys, threading
from pathlib import Path
import numpy as np
from gemfleet.cluster.checkpoint_store.commit import CheckpointDisk
from gemfleet.cluster.checkpoint_store.manifest import FileEntry

disk = CheckpointDisk(Path(sys.argv[1]))
generation = disk.begin_attempt()
newest, _ = disk.shelf.newest_verified()
step = newest.step if newest else 0

def send(rank, step):
    entries = []
    for part in range(2):
        name = f"rank-{rank}-{part}.bin"
        content = np.full(int(sys.argv[2]), step % 251, dtype=np.uint8)
        disk.begin(step, generation, name)
        for offset in range(0, len(content), 1 << 18):
            disk.write(step, generation, name, offset, content[offset : offset + (1 << 18)])
        entries.append(FileEntry(name, len(content), hashlib.sha256(content).hexdigest()))
        disk.finish(step, generation, entries[-1])
    disk.declare(step, generation, rank, entries, [0, 1])

print("saving", flush=True)
while True:
    step += 1
    ranks = [threading.Thread(target=send, args=(rank, step)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    disk.retain(3)
    print(step, flush=True)  # the writer was told that this step is safe
"""


def test_no_kill_costs_more_than_the_save_it_fell_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(SEED)
    told, lost = 0, 0
    for kill in range(KILLS):
        if kill % 20 == 0:
            progress(capsys, f"{kill} of {KILLS} kills of the store's writers, seed {SEED}")
        told = killed_at_random(tmp_path / "checkpoints", chance, told)
        disk = CheckpointDisk(tmp_path / "checkpoints")
        newest, damaged = disk.shelf.newest_verified()
        assert damaged == []
        if newest is None:
            assert told == 0
            continue
        assert newest.step >= told
        lost += newest.step < told
        assert len(newest.files) == 4
        assert isinstance(disk.shelf, FolderShelf)
        for entry in newest.files:
            content = np.fromfile(disk.shelf.folder(newest.step) / entry.path, dtype=np.uint8)
            assert (content == newest.step % 251).all()  # never a mix of two steps
    assert told > 0
    tell(f"{KILLS} kills at random moments of saving", f"newest whole each time, seed {SEED}", "-", lost)


def killed_at_random(root: Path, chance: random.Random, told: int) -> int:
    """Let a writer run for a moment and kill it; returns the last step it was told is safe, over all writers."""
    command = [sys.executable, "-c", WRITER, str(root), str(FILE_BYTES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "saving\n"
        time.sleep(chance.uniform(0.0, 0.4))
        writer.kill()
        lines = [line for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    return max([told, *map(int, lines)])


def progress(capsys: pytest.CaptureFixture[str], line: str) -> None:
    """A line on the terminal while the test goes on."""
    with capsys.disabled():
        print(f"\n  {line}", end="", flush=True)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(300 + 90 * RUN_KILLS)
def test_runs_end_the_same_whoever_is_killed(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One run after the other, each killed again and again until it is done all the same, until there were enough."""
    chance, began, kills, runs = random.Random(SEED), time.monotonic(), list[str](), 0
    while len(kills) < RUN_KILLS:
        kills += kill_until_done(place, tmp_path / f"home-{runs}", chance, RUN_KILLS - len(kills))
        runs += 1
        seconds = time.monotonic() - began
        progress(capsys, f"{len(kills)} of {RUN_KILLS} kills in {runs} whole runs after {seconds:.0f} s, seed {SEED}")
    tell(
        f"{len(kills)} kills at random moments of {runs} runs: {kills.count('rank')} of a rank, "
        f"{kills.count('driver')} of the driver; seconds a kill",
        *("succeeded, bit-identical", "-", None, (time.monotonic() - began) / len(kills)),
    )


def kill_until_done(place: Place, home: Path, chance: random.Random, at_most: int) -> list[str]:
    """One run that loses a rank or its driver until it has ended or was killed often enough; who was killed."""
    kills: list[str] = []
    process = start(place.workplace, home, place.address, EPOCHS, (f"cluster.max_failures={at_most}",))
    registry, moment = wait_for_step(home, 1), 0.0
    (run,) = registry.list_runs()
    while len(kills) < at_most and trains_again(registry, run.id, moment):
        time.sleep(chance.uniform(0.0, 2.0))
        moment = time.time()
        if chance.random() < 0.5:
            pid = chance.choice(registry.ranks(run.id))["pid"]
            if is_a_rank(pid):  # after a restart the registry may still name the process that was killed before
                os.kill(pid, signal.SIGKILL)
                kills.append("rank")
        elif process.poll() is None and registry.get_run(run.id).state == "training":
            process.kill()
            process.communicate()
            registry.mark_interrupted()  # the status API may have done so already
            assert registry.get_run(run.id).state == "interrupted"
            process = gemfleet(place.workplace, home, "resume", run.id)
            kills.append("driver")
    ends(process)
    assert registry.get_run(run.id).state == "succeeded"
    name = "adapter_model.safetensors"
    assert (home / "runs" / run.id / "output" / name).read_bytes() == (place.whole / name).read_bytes()
    verifies(home, run.id)
    return kills


def trains_again(registry: RunRegistry, run_id: str, after: float) -> bool:
    """Wait for a step later than this moment; False when training has ended instead."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        newest = registry.latest_metrics(run_id, "step")
        if registry.get_run(run_id).state in ("publishing", "succeeded"):
            return False
        if newest is not None and newest["time"] > after:
            return True
        time.sleep(0.1)
    raise AssertionError(f"no step followed within {WAIT_SECONDS:g} s")


def is_a_rank(pid: int) -> bool:
    try:
        return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
