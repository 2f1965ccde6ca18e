"""What routes work with: the registry, the event feed, and the two things that are different inside a Ray cluster.

Routes whose whole work is a few short reads of the registry are coroutines: a thread for each would cost more than the
reads. Whatever may take longer (files, many rows, writing) runs in a thread.
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
        """Make the run's row and start its driver, which outlives the API."""
        ...

    def resume(self, run: Run) -> None:
        """Open the row of a run that has ended again and start its driver. RunConflict when it cannot go on."""
        ...


class ClusterView(Protocol):
    """Sees the nodes of a cluster."""

    def nodes(self) -> list[Node] | None:
        """The living nodes; None outside a cluster."""
        ...


@dataclass(frozen=True)
class Services:
    """Everything a route needs, made once for an application."""

    settings: ApiSettings
    registry: RunRegistry
    reader: RegistryReader
    feed: Feed
    totals: RunTotals
    submitter: Submitter
    cluster: ClusterView

    def run(self, run_id: str) -> Run:
        """UnknownRun, answered as 404, when there is none."""
        return self.reader.get_run(run_id)


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Needed = Annotated[Services, Depends(services_of)]
