"""A folder of the driver's node brought to every node, once each, through Ray's object store.

What no other node has leaves the driver's node once: one node takes a chunk and puts it back for the others, each node
another part, so they exchange the rest among themselves. What a node has already, whole or in part, is not sent to it
again. A copy gets its name, the hash of its content, only when it is whole and verified.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ClusterError
from ..private import keep_private
from .exchange import Delivery, plan_deliveries
from .staged_copy import Held, StagedCopy, as_array
from .staged_files import CHUNK_BYTES, Chunk, StagedFile, all_chunks, content_hash, list_files, read_chunk

STORE_SHARE = 4  # chunks in flight take at most this part of the smallest node's object store
MOST_IN_FLIGHT = 16
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Staged:
    """What staging did.

    folders: for each node id the path of the content there
    receivers: how many nodes lacked something; sent: bytes that left the driver's node; exchanged: those among others
    """

    folders: dict[str, str]
    receivers: int = 0
    sent: int = 0
    exchanged: int = 0
    seconds: float = 0.0

    def plus(self, delivery: Delivery, size: int) -> Staged:
        """With one more chunk of this size."""
        from_here = size if delivery.giver is None else 0
        return replace(
            self, sent=self.sent + from_here, exchanged=self.exchanged + size * len(delivery.takers) - from_here
        )

    def describe(self) -> str:
        if not self.receivers:
            return f"the model is on every node already ({len(self.folders)})"
        return (
            f"the model went to {self.receivers} of {len(self.folders)} nodes in {self.seconds:.1f} s: "
            f"{self.sent / 2**20:,.0f} MiB from this one, {self.exchanged / 2**20:,.0f} MiB among the others"
        )


class NodeCopy:
    """A node's `StagedCopy`, as an actor on that node that takes no CPU from training."""

    def __init__(self, files: Sequence[StagedFile], target: str) -> None:
        import ray

        keep_private()
        self._copy = StagedCopy(files, Path(target), ray.get_runtime_context().get_node_id())

    def find(self, folder: str, living: Sequence[str]) -> Held:
        return self._copy.find(Path(folder), living)

    def take(self, number: int, data: NDArray[np.uint8]) -> None:
        self._copy.take(number, data)

    def take_and_give(self, number: int, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        self._copy.take(number, data)
        return data

    def give(self, number: int, source: str | None) -> NDArray[np.uint8]:
        return self._copy.give(number, source)

    def finish(self) -> str:
        return self._copy.finish()


def stage_folder(
    folder: Path,
    cache_root: str,
    on_progress: Progress | None = None,
    *,
    known: Mapping[str, str] = MappingProxyType({}),
    chunk_bytes: int = CHUNK_BYTES,
) -> Staged:
    """Bring `folder` to every living node; those that are `known` to hold it, by node id, are not asked again.

    Where that content exists already it is used in place; elsewhere the target is `<cache_root>/<hash of the content>`.
    `on_progress` gets bytes delivered and bytes in all. ClusterError when the folder holds no files or something that
    is neither file nor folder, changes meanwhile, or a node cannot take it; what arrived is used by the next attempt.
    """
    import ray

    from ..inventory import answering_nodes

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


def send_folder(
    folder: Path,
    files: Sequence[StagedFile],
    target: str,
    nodes: Sequence[str],
    on_progress: Progress | None = None,
    *,
    also_at: Path | None = None,
) -> Staged:
    """Bring the folder to each of `nodes`, as `target`; `also_at` is where a node may have the same content already.

    Only a few chunks are in flight, so that no object store fills.
    """
    chunks = all_chunks(files)
    with _copies(nodes, files, target) as copies:
        found = _on_all(copies, lambda copy: copy.find.remote(str(also_at or target), _living()))
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
                _get(waited)
                done += chunks[delivery.chunk].size * len(delivery.takers)
                if on_progress is not None:
                    on_progress(done, total)

        limit = _most_in_flight(max(chunk.size for chunk in chunks))
        for delivery in deliveries:
            settle(limit - 1)
            in_flight.append((delivery, _deliver(folder, chunks[delivery.chunk], delivery, copies, whole)))
            staged = staged.plus(delivery, chunks[delivery.chunk].size)
        settle(0)
        finished = _on_all({node: copies[node] for node in lacking}, lambda copy: copy.finish.remote())
    return replace(staged, folders=whole | finished)


def _living() -> list[str]:
    from ..inventory import list_nodes

    return [node.id for node in list_nodes()]


def _most_in_flight(chunk_bytes: int) -> int:
    """Chunks that may be on their way at once, by the smallest object store of the cluster."""
    from ..inventory import list_nodes

    store_bytes = min(node.object_store_bytes for node in list_nodes())
    return max(2, min(MOST_IN_FLIGHT, store_bytes // STORE_SHARE // max(1, chunk_bytes)))


def _deliver(
    folder: Path, chunk: Chunk, delivery: Delivery, copies: Mapping[str, Any], whole: Mapping[str, str]
) -> list[Any]:
    """Start one chunk on its way; what is returned is ready once every taker has it on its disk."""
    import ray

    takers = [copies[node] for node in delivery.takers]
    if delivery.giver is not None:
        data = copies[delivery.giver].give.remote(delivery.chunk, whole.get(delivery.giver))
        return [taker.take.remote(delivery.chunk, data) for taker in takers]
    data = ray.put(as_array(read_chunk(folder, chunk)))
    first, rest = takers[0], takers[1:]
    if not rest:
        return [first.take.remote(delivery.chunk, data)]
    passed_on = first.take_and_give.remote(delivery.chunk, data)  # lives on the first taker's node, and not here
    return [taker.take.remote(delivery.chunk, passed_on) for taker in rest]


@contextmanager
def _copies(nodes: Sequence[str], files: Sequence[StagedFile], target: str) -> Iterator[dict[str, Any]]:
    """An actor on each of the nodes, for as long as staging takes."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote, shared = ray.remote(NodeCopy), ray.put(tuple(files))
    copies = {}
    try:
        for node in nodes:
            where = NodeAffinitySchedulingStrategy(node, soft=False)
            copies[node] = remote.options(num_cpus=0, scheduling_strategy=where).remote(shared, target)
        yield copies
    finally:
        for copy in copies.values():
            ray.kill(copy)


def _on_all(copies: Mapping[str, Any], call: Callable[[Any], Any]) -> dict[str, Any]:
    return dict(zip(copies, _get([call(copy) for copy in copies.values()]), strict=True))


def _get(references: list[Any]) -> list[Any]:
    import ray
    import ray.exceptions

    try:
        return list(ray.get(references))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ClusterError):
            raise cause from None
        raise ClusterError(
            f"a node could not take the staged folder: {cause}; see to its disk, then start again"
        ) from error
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a node was lost while a folder was staged to it ({error}); start the run again") from error
