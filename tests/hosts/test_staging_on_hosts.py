"""A folder that only the head has, behind a link of 1 Gbit/s: it leaves the head once, and the others exchange it.

GEMFLEET_STAGE_MIB (default 256) is the folder's size.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hosts.hosts import Host
from support.hosts.ray_cluster import RayCluster

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900), pytest.mark.slow]
MIB = int(os.environ.get("GEMFLEET_STAGE_MIB") or 256)
FOLDER, CACHE = "/tmp/big", "/tmp/staged"
STAGE = """
import dataclasses, json, sys
from pathlib import Path
import ray
from gemfleet.cluster.staging.stage import stage_folder
ray.init(address="auto", log_to_driver=False, logging_level="error")
seen = []
staged = stage_folder(Path(sys.argv[1]), sys.argv[2], lambda done, of: seen.append(done))
print("STAGED", json.dumps(dataclasses.asdict(staged) | {"steps": len(seen), "delivered": seen[-1] if seen else 0}))
"""


@pytest.fixture(scope="module")
def folder(cluster: RayCluster) -> Iterator[Path]:
    """Random bytes in three files on the head's disk; what was staged is taken away again."""
    place = cluster.head.disk(FOLDER)
    place.mkdir()
    numbers = random.Random(7)
    for name, share in (("a", 0.5), ("b", 0.25), ("c", 0.25)):
        with (place / name).open("wb") as file:
            for _ in range(int(MIB * share)):
                file.write(numbers.randbytes(1 << 20))
    yield place
    for name in ("head", "left", "right"):
        cluster.fleet[name].run(["rm", "-rf", FOLDER, CACHE])


def test_it_leaves_the_head_once(cluster: RayCluster, folder: Path) -> None:
    size, head = sum(path.stat().st_size for path in folder.iterdir()), cluster.head
    with cluster.fleet.slowed("head", "1gbit", "1mb"):
        before, started = head.sent_bytes(), time.monotonic()
        staged = stage(head)
        seconds, sent = time.monotonic() - started, head.sent_bytes() - before
    print(
        f"\nstaged {size / 2**20:.0f} MiB to 2 hosts behind 1 Gbit/s: {sent / size:.3f} times the size left the head, "
        f"{staged['seconds']:.1f} s to stage, {seconds:.1f} s with starting Python and joining the cluster"
    )
    assert sent < 1.3 * size
    assert (staged["receivers"], staged["sent"], staged["exchanged"]) == (2, size, size)
    assert staged["delivered"] == 2 * size
    assert staged["steps"] >= size >> 24
    expected = hashes(folder)
    for name in ("left", "right"):
        assert hashes(cluster.fleet[name].disk(copy_on(cluster, staged, name))) == expected


def test_the_next_time_only_what_is_missing_is_sent(cluster: RayCluster, folder: Path) -> None:
    """One host lost a file of its copy, so to speak while it was sent; the other one gives it what is missing."""
    head, left = cluster.head, cluster.fleet["left"]
    staged = stage(head)
    assert (staged["receivers"], staged["sent"], staged["exchanged"]) == (0, 0, 0)
    copy = Path(copy_on(cluster, staged, "left"))
    left.run(["rm", str(copy / "b")])
    left.run(["mv", str(copy), str(copy.with_name(f".{copy.name}.0123456789abcdef.part"))])
    lost, before = (folder / "b").stat().st_size, head.sent_bytes()
    staged = stage(head)
    assert (staged["receivers"], staged["sent"], staged["exchanged"]) == (1, 0, lost)
    assert head.sent_bytes() - before < lost / 4
    assert hashes(left.disk(copy_on(cluster, staged, "left"))) == hashes(folder)


def stage(head: Host) -> dict[str, Any]:
    output = head.run(["python", "-c", STAGE, FOLDER, CACHE], timeout_s=300).stdout
    (line,) = (line for line in output.splitlines() if line.startswith("STAGED "))
    return dict(json.loads(line.removeprefix("STAGED ")))


def copy_on(cluster: RayCluster, staged: dict[str, Any], name: str) -> str:
    path = staged["folders"][cluster.alive_nodes()[cluster.fleet[name].address]]
    assert path.startswith(CACHE)
    return str(path)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
