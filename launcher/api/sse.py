"""Streams the feed as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from fastapi.responses import StreamingResponse
from gemfleet.cluster.registry.registry_reader import Mark

from .feed import Feed, Item
from .problems import ApiError

MEDIA_TYPE = "text/event-stream"
RETRY_MILLISECONDS = 1000
COMMENT_SECONDS = 15.0
POSITION = re.compile(r"(?P<event>\d{1,15})(-(?P<metric>\d{1,15}))?")

# One message of the stream, for OpenAPI.
CONTENT = {
    MEDIA_TYPE: {
        "schema": {
            "type": "object",
            "properties": {
                "id": {"type": "string", "description": "to be sent back as Last-Event-ID"},
                "event": {"type": "string", "examples": ["event", "metric", "line", "end"]},
                "data": {"type": "string", "description": "JSON", "contentMediaType": "application/json"},
            },
        }
    }
}


@dataclass(frozen=True)
class Start:
    """The state before a stream begins, read in this order: whether the run had ended, and the registry's last mark."""

    ended: bool
    upto: Mark


class EventStream(StreamingResponse):
    media_type = MEDIA_TYPE

    def __init__(self, content: AsyncIterator[str]) -> None:
        super().__init__(content, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


def parse_position(text: str) -> Mark:
    """Read a Last-Event-ID: `17` or `17-340`, the last event and the last record that a reader has seen.

    An empty text is the beginning. Raises ApiError 400 for any other text.
    """
    if not text:
        return Mark()
    found = POSITION.fullmatch(text)
    if found is None:
        raise ApiError(400, f"Last-Event-ID {text[:40]!r} is none that this API gave; leave it out to begin anew")
    return Mark(int(found["event"]), int(found["metric"] or 0))


def message(kind: str, body: str, position: str | None = None) -> str:
    """One message. body: JSON without line breaks"""
    identity = "" if position is None else f"id: {position}\n"
    return f"{identity}event: {kind}\ndata: {body}\n\n"


@dataclass(frozen=True)
class Wanted:
    """What a stream tells.

    run_id: events of this run; None: of all runs
    metrics: also the records of steps and evaluations
    points: thins the history before `Start.upto` to so many records of each kind and the newest events; None: tells all
    """

    run_id: str | None
    metrics: bool = False
    points: int | None = None


def stream(feed: Feed, wanted: Wanted, seen: Mark, start: Start, seconds: float) -> EventStream:
    """A stream of what is wanted after `seen`. It closes after the run's end, or after `seconds`."""
    return EventStream(_messages(feed, wanted, seen, start, seconds))


async def _messages(feed: Feed, wanted: Wanted, seen: Mark, start: Start, seconds: float) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    deadline = time.monotonic() + seconds
    newest, ended, going_on = start.upto.joined(feed.mark), start.ended, True
    if wanted.run_id is not None and wanted.points is not None and not seen.metric:
        seen = seen.joined(Mark(event=await feed.newest_events(wanted.run_id)))
        async for text in _chart(feed, wanted.run_id, wanted.points, seen):
            yield text
        seen = seen.joined(Mark(metric=start.upto.metric))
    while going_on:
        async for page in feed.pages(seen, newest, wanted.run_id, wanted.metrics):
            seen, text = _told(page, seen, wanted.metrics)
            if wanted.run_id is not None:  # the last word counts: a run that was resumed has ended before, and goes on
                *_, ended = ended, *(item.ends_run for item in page if item.ends_run is not None)
            if text:
                yield text
        seen = seen.joined(newest)
        if ended:
            yield message("end", "{}", _position(seen, wanted.metrics))
            return
        left = deadline - time.monotonic()
        going_on = left > 0 and await feed.wait(seen, min(left, COMMENT_SECONDS))
        newest = seen.joined(feed.mark)
        if going_on and newest == seen:
            yield ": still here\n\n"  # keeps proxies open, and notices a reader that has gone


def _told(page: Sequence[Item], seen: Mark, metrics: bool) -> tuple[Mark, str]:
    """The mark after a page, and its messages in one text: events, and metrics where they are wanted."""
    texts = []
    for item in page:
        if item.kind == "event" or metrics:
            seen = seen.joined(item.mark)
            texts.append(message(item.kind, item.body, _position(seen, metrics)))
    return seen, "".join(texts)


async def _chart(feed: Feed, run_id: str, points: int, seen: Mark) -> AsyncIterator[str]:
    """The thinned history. Its messages keep the position, so a reader that breaks off gets all of it again."""
    async for page in feed.chart(run_id, points):
        yield "".join(message(item.kind, item.body, _position(seen, metrics=True)) for item in page)


def _position(mark: Mark, metrics: bool) -> str:
    return f"{mark.event}-{mark.metric}" if metrics else str(mark.event)
