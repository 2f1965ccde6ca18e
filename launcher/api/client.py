"""A typed client of the API."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from gemfleet.cluster.errors import ClusterError
from gemfleet.cluster.registry.run_registry import RunState
from pydantic import BaseModel, ValidationError

from .client_messages import Message, parse_messages
from .cluster_schemas import ClusterStatus
from .schemas import (
    Checkpoint,
    Event,
    Health,
    Listing,
    LogLine,
    LogPage,
    Metric,
    MetricPage,
    Problem,
    RunConfiguration,
    RunDetail,
    RunSummary,
)

Answer = TypeVar("Answer", bound=BaseModel)
RETRY_SECONDS = 0.5
SILENCE_SECONDS = 60.0  # the server says something every 15 s


class ApiProblem(ClusterError):  # noqa: N818
    """The API refused a request. problem: its answer"""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        fields = "".join(f"\n  {error.field}: {error.detail}" for error in self.problem.errors or [])
        return f"{self.problem.detail}{fields}"


class ApiClient:
    """Talks to the API at `url`. A context manager. Raises ApiProblem for a refusal, ClusterError for no answer."""

    def __init__(self, url: str, token: str | None = None, timeout_seconds: float = 10.0) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._url = url
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=timeout_seconds, trust_env=False)

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def health(self) -> Health:
        return self._get("/healthz", Health)

    def cluster(self) -> ClusterStatus:
        return self._get("/cluster", ClusterStatus)

    def runs(
        self, limit: int = 20, after: str | None = None, status: RunState | None = None, archived: bool = False
    ) -> Listing[RunSummary]:
        return self._get("/runs", Listing[RunSummary], limit=limit, after=after, status=status, archived=archived)

    def all_runs(self, status: RunState | None = None, archived: bool = False) -> Iterator[RunSummary]:
        """All runs, the newest first, fetched page by page. archived: the archived ones, in place of the others"""
        after = None
        while True:
            page = self.runs(100, after, status, archived)
            yield from page.data
            if not page.has_more:
                return
            after = page.last_id

    def run(self, run_id: str) -> RunDetail:
        return self._get(f"/runs/{run_id}", RunDetail)

    def submit(self, config: Mapping[str, Any]) -> RunDetail:
        """Start a run from the content of a configuration file."""
        return RunDetail.model_validate(self._send("POST", "/runs", json={"config": dict(config)}).json())

    def tag(self, run_id: str, tags: Mapping[str, str | None]) -> RunDetail:
        """Set tags by key; None takes one away."""
        return RunDetail.model_validate(self._send("PATCH", f"/runs/{run_id}", json={"tags": dict(tags)}).json())

    def archive(self, run_id: str, archived: bool = True) -> RunDetail:
        """Leave a run that has ended out of lists, or take that back."""
        return RunDetail.model_validate(self._send("PATCH", f"/runs/{run_id}", json={"archived": archived}).json())

    def stop(self, run_id: str) -> RunDetail:
        return RunDetail.model_validate(self._send("POST", f"/runs/{run_id}/stop").json())

    def resume(self, run_id: str) -> RunDetail:
        """Resume a run that has ended, from its newest whole checkpoint."""
        return RunDetail.model_validate(self._send("POST", f"/runs/{run_id}/resume").json())

    def config(self, run_id: str) -> RunConfiguration:
        return self._get(f"/runs/{run_id}/config", RunConfiguration)

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        return self._get(f"/runs/{run_id}/checkpoints", Listing[Checkpoint], limit=1000).data

    def logs(self, run_id: str, rank: int | None = None, tail: int = 200) -> list[LogLine]:
        return self._get(f"/runs/{run_id}/logs", LogPage, rank=rank, tail=tail).data

    def metrics(self, run_id: str, since_step: int = 0) -> Iterator[Metric]:
        """The figures in the order of steps, fetched page by page."""
        while True:
            page = self._get(f"/runs/{run_id}/metrics", MetricPage, since_step=since_step)
            yield from page.data
            if not page.has_more:
                return
            since_step = page.next_since_step

    def events(self, run_id: str, after: int = 0) -> Iterator[Event]:
        """The events, the oldest first, fetched page by page."""
        while True:
            page = self._get(f"/runs/{run_id}/events", Listing[Event], after=after, limit=1000)
            yield from page.data
            if not page.has_more:
                return
            after = int(page.last_id or after)

    def follow(self, run_id: str, metrics: bool = False, last_id: str = "") -> Iterator[Message]:
        """Events, and with `metrics` records of steps, as they come, until the run has ended.

        After a broken connection, also when the API restarts, it connects again and goes on after the last message.
        """
        path = f"/api/v1/runs/{run_id}/events"
        while True:
            try:
                for message in self._stream(path, {"metrics": metrics}, last_id):
                    if message.kind == "end":
                        return
                    last_id = message.id
                    yield message
            except httpx2.TransportError:
                time.sleep(RETRY_SECONDS)

    def download(self, run_id: str, step: int, target: Path) -> Path:
        """Save a checkpoint's archive as `target`, which appears after its hash is verified. Raises ClusterError."""
        partial = target.with_name(f"{target.name}.part")
        digest = hashlib.sha256()
        with self._http.stream("GET", f"/api/v1/runs/{run_id}/checkpoints/{step}/download") as answer:
            _check(answer)
            with partial.open("wb") as file:
                for chunk in answer.iter_bytes():
                    digest.update(chunk)
                    file.write(chunk)
        expected = answer.headers["repr-digest"]
        if expected != f"sha-256=:{base64.b64encode(digest.digest()).decode()}:":
            partial.unlink()
            raise ClusterError(f"checkpoint {step} of {run_id} did not arrive whole; download it again")
        return partial.replace(target)

    def _get(self, path: str, kind: type[Answer], **query: Any) -> Answer:
        given = {name: str(value) for name, value in query.items() if value is not None}
        return kind.model_validate(self._send("GET", path, params=given).json())

    def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            return _check(self._http.request(method, f"/api/v1{path}", **options))
        except httpx2.TransportError as error:
            raise ClusterError(
                f"nobody answers at {self._url} ({error}); see that the address is right, or run `gemfleet serve` there"
            ) from error

    def _stream(self, path: str, query: Mapping[str, Any], last_id: str) -> Iterator[Message]:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
        timeout = httpx2.Timeout(10.0, read=SILENCE_SECONDS)
        with self._http.stream("GET", path, params=query, headers=headers, timeout=timeout) as answer:
            _check(answer)
            yield from parse_messages(answer.iter_lines())


def _check(answer: httpx2.Response) -> httpx2.Response:
    """The answer. Raises ApiProblem for a refusal."""
    if answer.status_code < 400:
        return answer
    answer.read()
    try:
        problem = Problem.model_validate_json(answer.content)
    except ValidationError:
        problem = Problem(title="", status=answer.status_code, detail=answer.text[:300], instance=str(answer.url))
    raise ApiProblem(problem)
