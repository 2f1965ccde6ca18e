"""Probe processes on a Ray cluster. One actor for each rank reserves the rank's resources and watches its process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import ray.exceptions
import ray.util
from gemfleet.cluster.errors import ResourcesUnavailable
from gemfleet.cluster.network import pin_network_interface
from gemfleet.launcher.placement import Placement
from gemfleet.train.batch_finder.probes.child import ProbeTask
from gemfleet.train.batch_finder.probes.process import Answer, LocalProbe
from gemfleet.train.device.cpu import hide_gpus
from gemfleet.train.device.memory import resident_bytes
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

CALL_SECONDS = 60.0  # every call returns at once, so a node that takes longer is lost
LOST = (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError)
Value = TypeVar("Value")


@dataclass(frozen=True)
class HostFacts:
    """Where an actor runs, and the memory of its process, without the probe's."""

    node: str
    address: str
    resident_bytes: int


class ProbeHost:
    """The actor of one rank. Its probe process dies with it, and it dies with the driver."""

    def __init__(self, on_gpu: bool) -> None:
        if not on_gpu:
            hide_gpus()
        pin_network_interface()
        self._address = ray.util.get_node_ip_address()
        self._probe = LocalProbe(self._address, self._address)

    def facts(self) -> HostFacts:
        return HostFacts(ray.get_runtime_context().get_node_id(), self._address, resident_bytes())

    def free_address(self) -> str:
        return self._probe.free_address()

    def start(self, task: ProbeTask) -> int:
        """Start the probe process; returns its id."""
        self._probe.start(task)
        assert self._probe.pid is not None
        return self._probe.pid

    def send(self, rows: int, evaluation: bool) -> None:
        self._probe.send(rows, evaluation)

    def poll(self) -> list[Answer]:
        return self._probe.poll()

    def kill(self) -> None:
        self._probe.kill()


class RayProbe:
    """A `ProbeHandle` that asks an actor. A lost actor counts as an ended process; Ray starts another where it can."""

    def __init__(self, actor: Any, facts: HostFacts) -> None:
        self._actor, self.node = actor, facts.address
        self.pid: int | None = None

    def free_address(self) -> str:
        return self._ask(lambda: self._actor.free_address.remote(), "127.0.0.1:1")

    def start(self, task: ProbeTask) -> None:
        self.pid = self._ask(lambda: self._actor.start.remote(task), None)

    def send(self, rows: int, evaluation: bool) -> None:
        self._ask(lambda: self._actor.send.remote(rows, evaluation), None)

    def poll(self) -> list[Answer]:
        return self._ask(
            lambda: self._actor.poll.remote(), [{"kind": "exited", "message": "its node or actor is gone"}]
        )

    def kill(self) -> None:
        self._ask(lambda: self._actor.kill.remote(), None)

    def _ask(self, call: Callable[[], Any], otherwise: Value) -> Value:
        try:
            answer: Value = ray.get(call(), timeout=CALL_SECONDS)
        except LOST:
            return otherwise
        return answer


@contextmanager
def probe_hosts(placement: Placement, timeout_s: float) -> Iterator[list[tuple[RayProbe, HostFacts]]]:
    """One host for each rank, placed as the run's ranks will be, and sorted by node. All end with the block.

    Raises ResourcesUnavailable when there is no room for them within `timeout_s`.
    """
    bundles = [placement.resources_per_rank()] * placement.ranks
    group = ray.util.placement_group(bundles, strategy=placement.strategy)
    actors: list[Any] = []
    try:
        if not group.wait(timeout_s):
            raise ResourcesUnavailable(
                f"no room for probes of {placement.describe()} within {timeout_s:g} s; lower cluster.workers"
            )
        actors = [_start_host(placement, group, index) for index in range(placement.ranks)]
        facts = ray.get([actor.facts.remote() for actor in actors], timeout=timeout_s)
        hosts = [(RayProbe(actor, fact), fact) for actor, fact in zip(actors, facts, strict=True)]
        yield sorted(hosts, key=lambda host: host[1].node)
    finally:
        for actor in actors:
            ray.kill(actor)
        ray.util.remove_placement_group(group)


def _start_host(placement: Placement, group: Any, index: int) -> Any:
    where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    return (
        ray.remote(ProbeHost)
        .options(
            num_cpus=placement.cpus_per_rank,
            num_gpus=placement.gpus_per_rank,
            scheduling_strategy=where,
            max_restarts=-1,
        )
        .remote(placement.gpus_per_rank > 0)
    )
