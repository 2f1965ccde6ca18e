"""Groups of ranks that stay up between cases: importing torch and meeting costs seconds, a case far less.

Each rank is a spawned process with its own pipe. A case is a function of this test suite, named by import, that every
rank calls with the same arguments; its results come back in the order of ranks.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

CASE_SECONDS = 240.0


Join = Callable[[int, int, str], None]


class RankPool:
    """`size` processes in one process group, until the context ends.

    join(rank, size, folder): called in each rank to make the group, over gloo unless another is given
    variables: what their environment has besides ours from their very start
    """

    def __init__(self, size: int, join: Join | None = None, variables: Mapping[str, str] | None = None) -> None:
        self.size = size
        self._join = join or join_gloo
        self._variables = variables or {}

    def __enter__(self) -> RankPool:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        pipes = [context.Pipe() for _ in range(self.size)]
        self._pipes: list[Connection] = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(rank, self.size, self._folder.name, theirs, self._join), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        with mock.patch.dict(os.environ, self._variables):
            for process in self._processes:
                process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if process.is_alive():
                pipe.send(None)
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call `function(*arguments)` on every rank. The first failure of a rank is raised with its traceback."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        return [self._answer(rank) for rank in range(self.size)]

    def _answer(self, rank: int) -> Any:
        pipe = self._pipes[rank]
        if not pipe.poll(CASE_SECONDS):
            self._kill()
            raise AssertionError(f"rank {rank} of {self.size} gave no answer in {CASE_SECONDS:g} s")
        try:
            failure, result = pipe.recv()
        except EOFError:
            self._kill()
            raise AssertionError(f"rank {rank} of {self.size} died") from None
        if failure:
            self._kill()  # the others may wait for it in a collective
            raise AssertionError(f"rank {rank} of {self.size} failed:\n{failure}")
        return result

    def is_alive(self) -> bool:
        """Whether all ranks can be asked: a failure of one ends them all."""
        return all(process.is_alive() for process in self._processes)

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def join_gloo(rank: int, size: int, folder: str) -> None:
    """One group of all ranks that communicates between CPUs."""
    import torch.distributed as dist

    store = dist.FileStore(str(Path(folder) / "rendezvous"), size)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)


def _serve(rank: int, size: int, folder: str, pipe: Connection, join: Join) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)  # the models of these cases are tiny, and ranks share the cores with one another
    join(rank, size, folder)
    while (case := pipe.recv()) is not None:
        function, arguments = case
        try:
            pipe.send((None, function(*arguments)))
        except BaseException:
            pipe.send((traceback.format_exc(), None))
    dist.destroy_process_group()
