"""Where commands that watch a run look: in the registry of this head, or at an API. Both answer in the same types."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

if TYPE_CHECKING:
    from gemfleet.launcher.api.schemas import Event, RunDetail

TOKEN_VARIABLE = "GEMFLEET_API_TOKEN"
POLL_SECONDS = 0.5
Address = Annotated[
    str | None,
    typer.Option(help=f"Ask the API at this URL, with the token in ${TOKEN_VARIABLE}. [default: this head's registry]"),
]


class Source(Protocol):
    """One run, on this head or behind an API."""

    def detail(self) -> RunDetail: ...

    def events(self, follow: bool) -> Iterator[Event]:
        """The oldest first. With `follow`, goes on until the run has ended."""
        ...


class HeadSource:
    """A run in the registry of this head. run: an id, the beginning of one, or `latest`"""

    def __init__(self, home: Path, run: str) -> None:
        from gemfleet.cluster.registry.registry_reader import RegistryReader
        from gemfleet.launcher.runs.registry import registry_of

        self._registry = registry_of(home)
        self._registry.mark_interrupted()
        self.run_id = self._registry.find_run(run).id
        self._folder = home / "runs" / self.run_id
        self._reader = RegistryReader(home / "gemfleet.db")

    def detail(self) -> RunDetail:
        from gemfleet.launcher.api.views import run_detail

        self._registry.mark_interrupted()
        return run_detail(
            self._reader, self._registry.get_run(self.run_id), self._folder, f"/api/v1/runs/{self.run_id}"
        )

    def events(self, follow: bool) -> Iterator[Event]:
        from gemfleet.launcher.api.views import event_view

        seen = 0
        while True:
            self._registry.mark_interrupted()
            ended = self._registry.get_run(self.run_id).state.is_terminal
            for row in self._registry.events(self.run_id, seen):
                seen = row["seq"]
                yield event_view(row)
            if ended or not follow:
                return
            time.sleep(POLL_SECONDS)


class ApiSource:
    """A run behind an API. run_id: its whole id, or `latest`"""

    def __init__(self, address: str, run_id: str) -> None:
        from gemfleet.launcher.api.client import ApiClient

        self._client = ApiClient(address, os.environ.get(TOKEN_VARIABLE))
        self.run_id = self._client.runs(1).data[0].id if run_id == "latest" else run_id

    def detail(self) -> RunDetail:
        return self._client.run(self.run_id)

    def events(self, follow: bool) -> Iterator[Event]:
        from gemfleet.launcher.api.schemas import Event

        if not follow:
            yield from self._client.events(self.run_id)
            return
        for message in self._client.follow(self.run_id):
            yield Event.model_validate(message.data)


def open_source(run: str, address: str | None) -> Source:
    """The run on this head, or behind the API at `address`."""
    from gemfleet.train.config.home import gemfleet_home

    return ApiSource(address, run) if address else HeadSource(gemfleet_home(), run)
