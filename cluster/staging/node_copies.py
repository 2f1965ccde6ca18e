"""The actors that stage a folder: one on each node, for as long as staging takes. Ray must be initialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ClusterError
from ..inventory import only_on
from ..private import keep_private
from .staged_copy import Held, StagedCopy
from .staged_files import StagedFile


class NodeCopy:
    """A node's `StagedCopy` as an actor on that node. It reserves no CPU. For the methods see `StagedCopy`."""

    def __init__(self, files: Sequence[StagedFile], target: str) -> None:
        import ray

        keep_private()
        self._copy = StagedCopy(files, Path(target), ray.get_runtime_context().get_node_id())

    def find(self, folder: str, living: Sequence[str]) -> Held:
        return self._copy.find(Path(folder), living)

    def take(self, number: int, data: NDArray[np.uint8]) -> None:
        self._copy.take(number, data)

    def take_and_give(self, number: int, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Takes a chunk and returns it, so that it lies in this node's object store for other nodes."""
        self._copy.take(number, data)
        return data

    def give(self, number: int, source: str | None) -> NDArray[np.uint8]:
        return self._copy.give(number, source)

    def finish(self) -> str:
        return self._copy.finish()


@contextmanager
def node_copies(nodes: Sequence[str], files: Sequence[StagedFile], target: str) -> Iterator[dict[str, Any]]:
    """An actor on each of the nodes, by node id. They end with the block."""
    import ray

    remote, shared = ray.remote(NodeCopy), ray.put(tuple(files))
    copies = {}
    try:
        for node in nodes:
            copies[node] = remote.options(num_cpus=0, **only_on(node)).remote(shared, target)
        yield copies
    finally:
        for copy in copies.values():
            ray.kill(copy)


def on_all(copies: Mapping[str, Any], call: Callable[[Any], Any]) -> dict[str, Any]:
    """The answer of each actor to one call, by node id. ClusterError as in `wait_for`."""
    return dict(zip(copies, wait_for([call(copy) for copy in copies.values()]), strict=True))


def wait_for(references: list[Any]) -> list[Any]:
    """The answers to calls. ClusterError when a node cannot take what it was sent, or is lost."""
    import ray
    import ray.exceptions

    try:
        return list(ray.get(references))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ClusterError):
            raise cause from None
        raise ClusterError(
            f"a node could not take the staged folder: {cause}; check its disk, then start again"
        ) from error
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a node was lost while a folder was staged to it ({error}); start the run again") from error
