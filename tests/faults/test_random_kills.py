"""Kills at random moments of saving: whatever is newest is whole, is of one step only, and is at most one save old.

Two writers send a checkpoint of four files, one step after the other, into one store's folder, in a process that is
killed at a random moment; then the next process goes on. GEMFLEET_KILLS says how often (default 12). Whole runs lose a
rank or their driver GEMFLEET_RUN_KILLS times (default 2), and still end bit for bit where an undisturbed one does.
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
from fault_table import EPOCHS, Place, tell, verifies
from gemfleet.cluster.checkpoint_store.disk import CheckpointDisk
from tiny_run import ends, gemfleet, start, states, wait_for_step

RUN_KILLS = int(os.environ.get("GEMFLEET_RUN_KILLS", "2"))
KILLS = int(os.environ.get("GEMFLEET_KILLS", "12"))
FILE_BYTES = 1 << 20
WRITER = """
import hashlib, sys, threading
from pathlib import Path
import numpy as np
from gemfleet.cluster.checkpoint_store.disk import CheckpointDisk
from gemfleet.cluster.checkpoint_store.manifest import FileEntry

disk = CheckpointDisk(Path(sys.argv[1]))
generation = disk.begin_attempt()
newest, _ = disk.newest_verified()
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


def test_no_kill_costs_more_than_the_save_it_fell_into(tmp_path: Path) -> None:
    chance = random.Random(2026)
    told, lost = 0, 0
    for _ in range(KILLS):
        told = killed_at_random(tmp_path / "checkpoints", chance, told)
        disk = CheckpointDisk(tmp_path / "checkpoints")
        newest, damaged = disk.newest_verified()
        assert damaged == []
        if newest is None:
            assert told == 0
            continue
        assert newest.step >= told
        lost += newest.step < told
        assert len(newest.files) == 4
        for entry in newest.files:
            content = np.fromfile(disk.folder(newest.step) / entry.path, dtype=np.uint8)
            assert (content == newest.step % 251).all()  # never a mix of two steps
    assert told > 0
    tell(f"{KILLS} kills at random moments of saving", "newest whole each time", "-", lost)


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


@pytest.mark.slow
@pytest.mark.faults
def test_runs_end_the_same_whoever_is_killed(place: Place, tmp_path: Path) -> None:
    home, chance, moment = tmp_path / "home", random.Random(7), 0.0
    patient = (f"cluster.max_failures={RUN_KILLS}",)
    process, drivers = start(place.workplace, home, place.address, EPOCHS, patient), 0
    for _ in range(RUN_KILLS):
        registry = wait_for_step(home, 1, after=moment)
        (run,) = registry.list_runs()
        time.sleep(chance.uniform(0.0, 2.0))
        if process.poll() is not None:
            break  # it was done before
        moment = time.time()
        if chance.random() < 0.5:
            os.kill(chance.choice(registry.ranks(run.id))["pid"], signal.SIGKILL)
        else:
            drivers += 1
            process.kill()
            process.communicate()
            assert registry.mark_interrupted() == [run.id]
            process = gemfleet(place.workplace, home, "resume", run.id)
    ends(process)
    assert states(registry, run.id)[-1] == "succeeded"
    name = "adapter_model.safetensors"
    assert (home / "runs" / run.id / "output" / name).read_bytes() == (place.whole / name).read_bytes()
    verifies(home, run.id)
    tell(f"{RUN_KILLS} random kills in one run, {drivers} of them of the driver", "succeeded, bit-identical")
