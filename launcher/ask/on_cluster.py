"""Asks on a node of the cluster: an actor holds the model, and its answers come back piece by piece."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import ray.exceptions
from gemfleet.cluster.errors import ClusterError, ResourcesUnavailable
from gemfleet.cluster.inventory import Node, list_nodes, only_on
from gemfleet.cluster.staging.stage import bring_folder
from gemfleet.launcher.config.cluster import ClusterConfig
from gemfleet.launcher.result.predict import ADAPTER_FILES, write_files
from gemfleet.launcher.result.tokenizer_files import GENERATION_FILE, TOKENIZER_FILES
from gemfleet.launcher.run.connect import address_of, connected
from gemfleet.train.config.home import cache_folder
from gemfleet.train.data.shapes.conversation import Message
from gemfleet.train.device.cpu import hide_gpus
from gemfleet.train.errors import UserError, first_line

from .answerer import Answerer, Sampling
from .subject import Subject

FILES = (*ADAPTER_FILES, GENERATION_FILE, *TOKENIZER_FILES)


class AnsweringNode:
    """The actor."""

    def load(self, subject: Subject, files: Mapping[str, bytes], on_gpu: bool, sees: bool = False) -> bool:
        """Load the model. Returns whether it answers within a conversation. files: of the adapter's folder, by name

        sees: see `Answerer`
        """
        if not on_gpu:
            hide_gpus()
        with TemporaryDirectory(prefix="gemfleet-adapter-") as folder:
            write_files(Path(folder), files)
            self._answerer = Answerer(replace(subject, adapter=Path(folder)), sees)
        return self._answerer.turns

    def answer(self, messages: Sequence[Message], sampling: Sampling, base: bool) -> Iterator[str]:
        yield from self._answerer.answer(messages, sampling, base)

    def stop(self) -> None:
        """End the answer that is being made."""
        self._answerer.stop()


class AnswersOfNode:
    """As an `Answerer`, but in an actor. turns: see there"""

    def __init__(self, actor: Any, turns: bool) -> None:
        self._actor, self.turns = actor, turns

    def answer(self, messages: Sequence[Message], sampling: Sampling, base: bool = False) -> Generator[str]:
        """See `Answerer.answer`."""
        pieces = self._actor.answer.options(num_returns="streaming").remote(list(messages), sampling, base)
        try:
            for piece in pieces:
                yield _value(piece)
        finally:
            self._actor.stop.remote()


@contextmanager
def answers_on_cluster(subject: Subject, address: str | None, sees: bool = False) -> Iterator[AnswersOfNode]:
    """An actor on a free GPU of the cluster, else on a free CPU. It ends with the block.

    address: None: RAY_ADDRESS, else this machine's cluster; sees: see `Answerer`
    Raises ClusterError where there is no cluster or no room, UserError where the model cannot be loaded.
    """
    config = ClusterConfig(address=address or "auto")
    if address_of(config) == "local":
        raise ClusterError("no Ray cluster runs here; name one by --address, or leave out --cluster to ask on the CPU")
    with connected(config):
        node = choose_node(list_nodes())
        on_gpu = node.free_gpus >= 1
        placed = replace(subject, base=Path(bring_folder(subject.base, str(cache_folder("staged")), node.id)))
        options = {"num_cpus": 0 if on_gpu else 1, "num_gpus": int(on_gpu), "max_concurrency": 2, **only_on(node.id)}
        actor = ray.remote(AnsweringNode).options(**options).remote()
        try:
            yield loaded(actor, placed, files_of(subject.adapter), on_gpu, sees)
        finally:
            ray.kill(actor)


def loaded(actor: Any, subject: Subject, files: Mapping[str, bytes], on_gpu: bool, sees: bool = False) -> AnswersOfNode:
    """The actor's answers, once it has loaded the model. Raises the UserError that it raised."""
    return AnswersOfNode(actor, _value(actor.load.remote(subject, files, on_gpu, sees)))


def files_of(adapter: Path) -> dict[str, bytes]:
    """What a node needs of an adapter's folder, by name."""
    return {name: (adapter / name).read_bytes() for name in FILES if (adapter / name).is_file()}


def choose_node(nodes: Sequence[Node]) -> Node:
    """The node with most free GPUs, else with most free CPUs. Raises ResourcesUnavailable if none has one."""
    usable = [node for node in nodes if not node.draining and (node.free_gpus >= 1 or node.free_cpus >= 1)]
    if not usable:
        raise ResourcesUnavailable("no node has a free GPU or CPU to answer with; wait, or leave out --cluster")
    return max(usable, key=lambda node: (node.free_gpus, node.free_cpus))


def _value(reference: Any) -> Any:
    """What the actor returned. Raises the UserError that it raised."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise ClusterError(f"the model on the cluster has gone: {first_line(error)}") from error
