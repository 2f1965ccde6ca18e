"""Routes of what happens: a run's events as a list or a stream, the figures of its steps, and a stream of all runs."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from gemfleet.cluster.registry.run_queries import KINDS
from gemfleet.launcher.api.problems import responses
from gemfleet.launcher.api.schemas import Event, Listing, Metric, MetricPage
from gemfleet.launcher.api.services import Needed
from gemfleet.launcher.api.sse import CONTENT, MEDIA_TYPE, Start, Wanted, parse_position, stream
from gemfleet.launcher.api.views import event_view, metric_view
from pydantic import Field

from .parameters import Absent, AfterEvent, Limit, RunId, SinceStep

router = APIRouter(tags=["events"])
LastEventId = Annotated[
    str,
    Header(
        alias="Last-Event-ID",
        pattern=r"^([0-9]{1,15}(-[0-9]{1,15})?)?$",
        description="the id of the last received message; the stream goes on after it",
    ),
]


@router.get(
    "/runs/{run_id}/events",
    summary="What happened to a run",
    response_model=Listing[Event],
    responses={**responses(404, 422), 200: {"content": CONTENT}},
)
async def run_events(
    services: Needed,
    request: Request,
    run_id: RunId,
    after: AfterEvent = 0,
    limit: Limit = 100,
    metrics: Annotated[bool, Query(description="in a stream, also the figures of steps, as `metric` messages")] = False,
    points: Annotated[
        Annotated[int, Field(ge=2, le=10_000)] | Absent,
        Query(description="for charts: thins a stream's history with metrics to so many steps and the newest events"),
    ] = None,
    last_event_id: LastEventId = "",
) -> Listing[Event] | Response:
    """The oldest first, as JSON.

    With `Accept: text/event-stream`, a stream of server-sent events. It goes on after `Last-Event-ID`, and closes after
    an `end` message when the run has ended.
    """
    run = services.run(run_id)
    if MEDIA_TYPE in request.headers.get("accept", ""):
        start = Start(run.state.is_terminal, services.reader.head())
        seen = parse_position(last_event_id or str(after))
        wanted = Wanted(run_id, metrics, points if metrics else None)
        return stream(services.feed, wanted, seen, start, services.settings.stream_seconds)
    found = services.reader.events(run_id, after, limit + 1)
    return Listing[Event].of([event_view(row) for row in found], limit)


@router.get(
    "/events",
    summary="What happens to all runs",
    responses={**responses(422), 200: {"content": CONTENT}},
    response_class=Response,
)
async def all_events(
    services: Needed,
    metrics: Annotated[bool, Query(description="also the figures of steps, as `metric` messages")] = False,
    last_event_id: LastEventId = "",
) -> Response:
    """A stream of server-sent events of all runs, from now on or after `Last-Event-ID`."""
    head = services.reader.head()
    seen = parse_position(last_event_id) if last_event_id else head
    return stream(services.feed, Wanted(None, metrics), seen, Start(False, head), services.settings.stream_seconds)


@router.get("/runs/{run_id}/metrics", summary="The figures of its steps", responses=responses(404, 422))
def run_metrics(
    services: Needed,
    run_id: RunId,
    since_step: SinceStep = 0,
    limit: Limit = 1000,
    kind: Annotated[Literal["step", "eval", "all"], Query(description="of steps, of evaluations, or of both")] = "all",
    points: Annotated[
        Annotated[int, Field(ge=2, le=10_000)] | Absent,
        Query(description="for charts: in one page only so many records of each kind, spread over all steps"),
    ] = None,
) -> MetricPage:
    """In the order of steps. A page ends after a whole step, so that no record is lost between two pages."""
    services.run(run_id)
    if points is not None:
        kinds = KINDS if kind == "all" else (kind,)
        thinned = [record for one in kinds for record in services.reader.thinned(run_id, one, points)]
        thinned.sort(key=lambda record: (record["step"], record["kind"]))
        return MetricPage(data=list(map(metric_view, thinned)), has_more=False, next_since_step=since_step)
    records = services.reader.metrics(run_id, since_step, None if kind == "all" else kind, limit + 1)
    more = len(records) > limit
    if more:
        last = records[-1]["step"]
        records = [record for record in records if record["step"] < last] or records[:-1]
    data: list[Metric] = [metric_view(record) for record in records]
    after = data[-1].step + 1 if data else since_step
    return MetricPage(data=data, has_more=more, next_since_step=after)
