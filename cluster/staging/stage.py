"""Brings a folder of the driver's node to every node, once each, through Ray's object store.

A chunk that no other node has leaves the driver's node once: one node takes it and gives it to the others. Each node
takes other chunks, so the nodes exchange the rest among themselves. A node is not sent what it has already, whole or in
part. A copy gets its name, the hash of its content, only when it is whole and verified.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..inventory import answering_nodes, list_nodes
from .exchange import Delivery, plan_deliveries
from .node_copies import node_copies, on_all, wait_for
from .staged_copy import as_array
from .staged_files import CHUNK_BYTES, Chunk, StagedFile, all_chunks, content_hash, list_files, read_chunk

STORE_SHARE = 4  # chunks in flight take at most the fourth part of the smallest object store of the cluster
MOST_IN_FLIGHT = 16
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Staged:
    """What staging did.

    folders:   the path of the content on each node, by node id
    receivers: how many nodes lacked something
    sent:      bytes that left the driver's node
    exchanged: bytes that other nodes gave to each other
    seconds:   how long it took
    """

    folders: dict[str, str]
    receivers: int = 0
    sent: int = 0
    exchanged: int = 0
    seconds: float = 0.0

    def plus(self, delivery: Delivery, size: int) -> Staged:
        """The sum of this and one more chunk of `size` bytes."""
        from_here = size if delivery.giver is None else 0
        return replace(
            self, sent=self.sent + from_here, exchanged=self.exchanged + size * len(delivery.takers) - from_here
        )

    def describe(self) -> str:
        """One sentence, for people."""
        if not self.receivers:
            return f"the model is on every node already ({len(self.folders)})"
        return (
            f"the model went to {self.receivers} of {len(self.folders)} nodes in {self.seconds:.1f} s: "
            f"{self.sent / 2**20:,.0f} MiB from this one, {self.exchanged / 2**20:,.0f} MiB among the others"
        )


def stage_folder(
    folder: Path,
    cache_root: str,
    on_progress: Progress | None = None,
    *,
    known: Mapping[str, str] = MappingProxyType({}),
    chunk_bytes: int = CHUNK_BYTES,
) -> Staged:
    """Brings `folder` to every living node. A node that has the content already uses it where it lies.

    cache_root:  where other nodes keep the copy, as `<cache_root>/<hash of the content>`
    on_progress: gets the delivered bytes and the bytes in all
    known:       by node id, paths on nodes that hold the content for certain; these nodes are not asked again

    ClusterError when the folder holds no files, or something that is neither file nor folder; when it changes
    meanwhile; and when a node cannot take it. The next attempt uses what arrived.
    """
    import ray

    started = time.monotonic()
    folder = folder.resolve()
    own = ray.get_runtime_context().get_node_id()
    living = [node.id for node in answering_nodes() if not node.draining]
    others = [node for node in living if node != own and node not in known]
    staged = Staged({own: str(folder)} | {node: path for node, path in known.items() if node in living})
    if others:
        files = list_files(folder, chunk_bytes)
        target = str(Path(cache_root) / content_hash(files))
        sent = send_folder(folder, files, target, others, on_progress, also_at=folder)
        staged = replace(sent, folders=staged.folders | sent.folders)
    return replace(staged, seconds=time.monotonic() - started)


def bring_folder(folder: Path, cache_root: str, node: str) -> str:
    """The folder's path on one node, to which it is brought unless it is this one. Arguments, errors: `stage_folder`"""
    import ray

    folder = folder.resolve()
    if node == ray.get_runtime_context().get_node_id():
        return str(folder)
    files = list_files(folder)
    return send_folder(folder, files, str(Path(cache_root) / content_hash(files)), [node], also_at=folder).folders[node]


def send_folder(
    folder: Path,
    files: Sequence[StagedFile],
    target: str,
    nodes: Sequence[str],
    on_progress: Progress | None = None,
    *,
    also_at: Path | None = None,
) -> Staged:
    """Brings the folder to each of `nodes` as `target`, and keeps only a few chunks in flight: no object store fills.

    `also_at`: a path where a node may have the same content already. Errors: see `stage_folder`.
    """
    chunks = all_chunks(files)
    with node_copies(nodes, files, target) as copies:
        found = on_all(copies, lambda copy: copy.find.remote(str(also_at or target), _living()))
        whole = {node: held.path for node, held in found.items() if held.path is not None}
        lacking = [node for node in nodes if node not in whole]
        held = {node: set(range(len(chunks))) if node in whole else set(has.chunks) for node, has in found.items()}
        deliveries = plan_deliveries([chunk.size for chunk in chunks], held, lacking)
        total, done = sum(chunks[d.chunk].size * len(d.takers) for d in deliveries), 0
        staged = Staged({}, receivers=len(lacking))
        in_flight: deque[tuple[Delivery, list[Any]]] = deque()

        def settle(limit: int) -> None:
            nonlocal done
            while len(in_flight) > limit:
                delivery, waited = in_flight.popleft()
                wait_for(waited)
                done += chunks[delivery.chunk].size * len(delivery.takers)
                if on_progress is not None:
                    on_progress(done, total)

        limit = _most_in_flight(max(chunk.size for chunk in chunks))
        for delivery in deliveries:
            settle(limit - 1)
            in_flight.append((delivery, _deliver(folder, chunks[delivery.chunk], delivery, copies, whole)))
            staged = staged.plus(delivery, chunks[delivery.chunk].size)
        settle(0)
        finished = on_all({node: copies[node] for node in lacking}, lambda copy: copy.finish.remote())
    return replace(staged, folders=whole | finished)


def _living() -> list[str]:
    return [node.id for node in list_nodes()]


def _most_in_flight(chunk_bytes: int) -> int:
    """How many chunks may be on their way at once."""
    store_bytes = min(node.object_store_bytes for node in list_nodes())
    return max(2, min(MOST_IN_FLIGHT, store_bytes // STORE_SHARE // max(1, chunk_bytes)))


def _deliver(
    folder: Path, chunk: Chunk, delivery: Delivery, copies: Mapping[str, Any], whole: Mapping[str, str]
) -> list[Any]:
    """Starts one chunk on its way. The returned references are ready once every taker has it on its disk."""
    import ray

    takers = [copies[node] for node in delivery.takers]
    if delivery.giver is not None:
        data = copies[delivery.giver].give.remote(delivery.chunk, whole.get(delivery.giver))
        return [taker.take.remote(delivery.chunk, data) for taker in takers]
    data = ray.put(as_array(read_chunk(folder, chunk)))
    first, rest = takers[0], takers[1:]
    if not rest:
        return [first.take.remote(delivery.chunk, data)]
    passed_on = first.take_and_give.remote(delivery.chunk, data)  # an object on the first taker's node, not on this one
    return [taker.take.remote(delivery.chunk, passed_on) for taker in rest]
