"""The route of a run's log lines: the last ones, or all that come."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query, Response
from gemfleet.launcher.api.problems import responses
from gemfleet.launcher.api.redaction import redact_text
from gemfleet.launcher.api.schemas import LogLine, LogPage
from gemfleet.launcher.api.services import Needed, Services
from gemfleet.launcher.api.sse import COMMENT_SECONDS, CONTENT, EventStream, message
from gemfleet.launcher.runs.log_files import LogReader
from gemfleet.launcher.runs.log_order import by_time
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from .parameters import Absent, RunId

router = APIRouter(prefix="/runs/{run_id}", tags=["logs"])
POLL_SECONDS = 0.5
PAGE_LINES = 1000


@router.get(
    "/logs",
    summary="Log lines of the driver and the ranks",
    response_model=LogPage,
    responses={**responses(404, 422), 200: {"content": CONTENT}},
)
def run_logs(
    services: Needed,
    run_id: RunId,
    rank: Annotated[Annotated[int, Field(ge=0, le=100_000)] | Absent, Query(description="of this rank only")] = None,
    contains: Annotated[
        str, Query(max_length=200, description="only lines with this text, in the newest part of each file")
    ] = "",
    tail: Annotated[int, Query(ge=0, le=10_000, description="how many of the last lines of each file")] = 200,
    follow: Annotated[bool, Query(description="go on with `line` messages as server-sent events")] = False,
) -> LogPage | Response:
    """The last lines of each file, in the order of their times.

    With `follow`, a stream that begins with them, goes on with new lines, and closes when the run has ended.
    """
    reader = LogReader(services.settings.run_folder(services.run(run_id).id) / "logs", rank, contains)
    if follow:
        return EventStream(_lines(services, run_id, reader, tail))
    return LogPage(data=[_line(source, text) for source, text in by_time(reader.tail(tail))])


def _line(source: str, text: str) -> LogLine:
    return LogLine(source=source, line=redact_text(text))


async def _pages(lines: Iterator[tuple[str, str]]) -> AsyncIterator[str]:
    """Messages of lines, PAGE_LINES at once in the order of their times. All new lines might not fit into memory."""
    while page := await run_in_threadpool(lambda: list(by_time(islice(lines, PAGE_LINES)))):
        yield "".join(message("line", _line(source, text).model_dump_json()) for source, text in page)


async def _lines(services: Services, run_id: str, reader: LogReader, tail: int) -> AsyncIterator[str]:
    deadline = time.monotonic() + services.settings.stream_seconds
    spoke = time.monotonic()
    lines = iter(await run_in_threadpool(lambda: list(by_time(reader.tail(tail)))))
    while True:
        async for texts in _pages(lines):
            yield texts
            spoke = time.monotonic()
        if time.monotonic() > deadline or services.feed.closed:
            return
        run = await run_in_threadpool(services.reader.run, run_id)
        lines = reader.new_lines()
        if run is None or run.state.is_terminal:
            async for texts in _pages(lines):
                yield texts
            yield message("end", json.dumps({}))
            return
        if time.monotonic() - spoke > COMMENT_SECONDS:
            spoke = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(POLL_SECONDS)
