"""The doctor's actors on a node: they answer questions, listen, send, and take part in a collective."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Sequence
from typing import Any

from ..checkpoint_store.client import StoreClient
from ..network import free_port, pin_network_interface
from ..scratch import scratch_folder
from .facts import node_facts
from .links import Sink, measure_link

COLLECTIVE_SECONDS = 25.0
REPEATS = 3


class Probe:
    """One for each node. It reserves nothing, so that it fits beside a run."""

    def __init__(self) -> None:
        self._sink: Sink | None = None

    def facts(self, home: str) -> dict[str, Any]:
        """See `node_facts`."""
        return node_facts(home)

    def clock(self) -> float:
        """Seconds since 1970 by this node's clock."""
        return time.time()

    def listen(self, address: str) -> int:
        """Starts to take bytes at `address`. Returns the port."""
        self._sink = Sink(address)
        return self._sink.port

    def send(self, targets: Sequence[tuple[str, int]], size: int) -> dict[str, dict[str, Any]]:
        """`measure_link` to each (address, port), one after the other."""
        return {address: measure_link(address, port, size) for address, port in targets}

    def fetch(self, block: Any) -> float:
        """Seconds until an object of Ray is in this process. `block`: a list with its reference."""
        import ray

        started = time.monotonic()
        ray.get(block[0])
        return time.monotonic() - started

    def upload(self, store: StoreClient, step: int, size: int) -> float:
        """Seconds to send a checkpoint, one file of `size` bytes, until the store has committed it."""
        with scratch_folder("gemfleet-doctor-") as folder:
            (folder / "block.bin").write_bytes(os.urandom(size))
            started = time.monotonic()
            store.upload(step, folder, 0, [0])
            return time.monotonic() - started

    def reachable(self, url: str) -> str:
        """Why a HEAD request of `url` fails; empty when it does not. 401, 403, 404 and all from 500 on are failures."""
        import httpx2

        try:
            status = httpx2.head(url, follow_redirects=True, timeout=10).status_code
        except httpx2.HTTPError as error:
            return str(error) or type(error).__name__
        return f"status {status}" if status in (401, 403, 404) or status >= 500 else ""


class RankProbe:
    """One rank of a process group. It pins the interface as training does, then sums a buffer over all ranks."""

    def address(self) -> tuple[str, int]:
        """This node's address and a free port on it. It imports torch, so that all ranks begin their sum at once."""
        import ray.util
        import torch.distributed  # noqa: F401

        address = ray.util.get_node_ip_address()
        return address, free_port(address)

    def all_reduce(self, rank: int, world: int, master: tuple[str, int], size: int, gpu: bool) -> dict[str, Any]:
        """Sums `size` bytes over all ranks, a few times, then sends as many to the next rank. Collective.

        master: address and port of rank 0
        wrong: elements that do not hold the sum; seconds: of the fastest time; interface: the one that was pinned
        exchanged_wrong, exchange_seconds: the same of the bytes that came from the rank before
        """
        import torch
        import torch.distributed as dist

        interface = pin_network_interface()
        host = f"[{master[0]}]" if ":" in master[0] else master[0]
        dist.init_process_group(
            "nccl" if gpu else "gloo",
            init_method=f"tcp://{host}:{master[1]}",
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(seconds=COLLECTIVE_SECONDS),
        )
        try:
            device, times, wrong = torch.device("cuda" if gpu else "cpu"), [], 0
            pattern = torch.arange(size // 4, device=device) % 251
            for _ in range(REPEATS):
                block = (pattern * (rank + 1)).float()
                dist.barrier()
                started = time.monotonic()
                dist.all_reduce(block)
                if gpu:
                    torch.cuda.synchronize()
                times.append(time.monotonic() - started)
                wrong += int((block != (pattern * (world * (world + 1) // 2)).float()).sum())
            seconds, lost = exchange(rank, world, pattern)
            found = {"wrong": wrong, "seconds": min(times), "interface": interface or ""}
            return {**found, "exchanged_wrong": lost, "exchange_seconds": seconds}
        finally:
            dist.destroy_process_group()


def exchange(rank: int, world: int, pattern: Any) -> tuple[float, int]:
    """Sends the pattern to the next rank, as context parallelism does. Collective.

    pattern: int64 [N] on the group's device, sent as fp32. Returns the seconds of the fastest time, and the elements
    that came wrong.
    """
    import torch
    import torch.distributed as dist

    before, after = (rank - 1) % world, (rank + 1) % world
    sizes = [[len(pattern) * (peer == neighbour) for peer in range(world)] for neighbour in (before, after)]
    sent, got, times = (pattern * (rank + 1)).float(), torch.empty_like(pattern, dtype=torch.float32), []
    for _ in range(REPEATS):
        dist.barrier()
        started = time.monotonic()
        dist.all_to_all_single(got, sent, sizes[0], sizes[1])
        if pattern.is_cuda:
            torch.cuda.synchronize()
        times.append(time.monotonic() - started)
    return min(times), int((got != (pattern * (before + 1)).float()).sum())
