"""What routes use: the registry, the event feed, and two services that differ inside a Ray cluster.

A route that only makes a few short reads of the registry is a coroutine, because a thread would cost more than the
reads. A route that may take longer (files, many rows, writing) runs in a thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from fastapi import Depends, Request
from gemfleet.cluster.inventory import Node
from gemfleet.cluster.registry.registry_reader import RegistryReader
from gemfleet.cluster.registry.run_registry import Run, RunRegistry

from .feed import Feed
from .settings import ApiSettings
from .totals import RunTotals


class Submitter(Protocol):
    """Starts runs."""

    def start(self, run_id: str, config: dict[str, Any]) -> None:
        """Make the run's row and start its driver, which goes on without the API."""
        ...

    def resume(self, run: Run) -> None:
        """Open the row of an ended run again and start its driver. Raises RunConflict when it cannot be resumed."""
        ...


class ClusterView(Protocol):
    """Sees the nodes of a cluster."""

    def nodes(self) -> list[Node] | None:
        """The living nodes. None outside a cluster."""
        ...


@dataclass(frozen=True)
class Services:
    """What routes use. Made once for each application."""

    settings: ApiSettings
    registry: RunRegistry
    reader: RegistryReader
    feed: Feed
    totals: RunTotals
    submitter: Submitter
    cluster: ClusterView

    def run(self, run_id: str) -> Run:
        """The run. Raises UnknownRun, which is answered as 404."""
        return self.reader.get_run(run_id)


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Needed = Annotated[Services, Depends(services_of)]
