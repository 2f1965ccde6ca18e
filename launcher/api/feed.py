"""Gives all open event streams what is new in the registry, with one look at it for all of them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.registry_reader import Mark, RegistryReader
from gemfleet.cluster.registry.run_queries import KINDS
from gemfleet.cluster.registry.run_registry import RunState
from starlette.concurrency import run_in_threadpool

from .chart_records import chart_record
from .redaction import redact
from .views import event_view, metric_view

log = logging.getLogger("gemfleet.api")
REMEMBERED_LOOKS = 500
REMEMBERED_ITEMS = 20_000
PAGE_ROWS = 500  # rows of the registry that a stream holds in memory at once
CHART_RECORDS = 2000  # the same of records that are made small for charts
MOST_EVENTS = 500  # events of a history that a page of the dashboard gets
HOUSEKEEPING_LOOKS = 25  # looks between two calls of `housekeeping`


@dataclass(frozen=True)
class Item:
    """One event or metrics record, ready to be sent. mark: the position of a reader that has seen it

    ends_run: whether the event ends its run; None if it is no change of state
    """

    kind: str
    run_id: str
    mark: Mark
    body: str
    ends_run: bool | None


@dataclass(frozen=True)
class Look:
    """What one look at the registry found. upto: how far it read"""

    upto: Mark
    items: tuple[Item, ...]


class Feed:
    """Looks at the registry every `poll_seconds` and remembers the newest items, so that live streams read no disk.

    housekeeping: called now and then; marks runs whose driver has gone
    """

    def __init__(self, reader: RegistryReader, poll_seconds: float, housekeeping: Callable[[], object]) -> None:
        self._reader, self._poll_seconds, self._housekeeping = reader, poll_seconds, housekeeping
        self._looks: deque[Look] = deque()
        self._remembered_items = 0
        self._floor: Mark | None = None  # memory holds all items after it
        self._changed = asyncio.Event()
        self.closed = False
        self.mark = Mark()

    async def watch(self) -> None:
        """Look at the registry until cancelled."""
        self.mark = self._floor = await run_in_threadpool(self._reader.head)
        looks = 0
        while True:
            try:
                if looks % HOUSEKEEPING_LOOKS == 0:
                    await run_in_threadpool(self._housekeeping)
                while await self._look():
                    pass
            except Exception:  # a full disk or a locked file; streams wait until that has passed
                log.exception("the registry could not be read; trying again")
            looks += 1
            await asyncio.sleep(self._poll_seconds)

    def close(self) -> None:
        """End all streams, so that the server can stop."""
        self.closed = True
        self._tell()

    async def wait(self, seen: Mark, timeout_seconds: float) -> bool:
        """Wait for something newer than `seen`, or for the time to pass. Returns False if the feed is closed."""
        if not self.closed and seen.covers(self.mark):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), timeout_seconds)
        return not self.closed

    async def pages(self, after: Mark, upto: Mark, run_id: str | None, metrics: bool) -> AsyncIterator[Sequence[Item]]:
        """The items between two marks, records before events. run_id: None: of all runs; metrics: also records

        They come from memory if that reaches back far enough, else from the disk, in pages that cost little memory.
        """
        if self._floor is not None and after.covers(self._floor) and self.mark.covers(upto):
            yield self._remembered(after, upto, run_id)
            return
        if metrics:
            async for page in self._records(after.metric, upto.metric, run_id):
                yield page
        event = after.event
        while rows := await run_in_threadpool(self._reader.events_between, event, upto.event, run_id, PAGE_ROWS):
            yield await run_in_threadpool(_items, _event_item, rows)
            event = rows[-1]["seq"]

    async def chart(self, run_id: str, points: int) -> AsyncIterator[Sequence[Item]]:
        """A run's records for a chart: at most `points` of each kind, spread evenly from its beginning.

        They hold what charts draw, see `chart_record`.
        """
        for kind in KINDS:
            records = map(chart_record, self._reader.thinned(run_id, kind, points))
            while some := await run_in_threadpool(_take, records, CHART_RECORDS):
                rows = [{"position": 0, "run_id": run_id, "record": record} for record in some]
                yield await run_in_threadpool(_items, _metric_item, rows)

    async def newest_events(self, run_id: str) -> int:
        """The position before a run's newest MOST_EVENTS events."""
        return await run_in_threadpool(self._reader.newest_events_begin, run_id, MOST_EVENTS)

    def _remembered(self, after: Mark, upto: Mark, run_id: str | None) -> list[Item]:
        found: list[Item] = []
        for look in reversed(self._looks):
            if after.covers(look.upto):
                break
            found[:0] = [i for i in look.items if run_id in (None, i.run_id) and _between(i, after, upto)]
        return found

    async def _records(self, after: int, upto: int, run_id: str | None) -> AsyncIterator[Sequence[Item]]:
        if run_id is not None:  # skips the many records of other runs before and after this run's
            first, last = await run_in_threadpool(self._reader.metrics_span, run_id)
            after, upto = max(after, first - 1), min(upto, last)
        while after < upto and (
            rows := await run_in_threadpool(self._reader.metrics_between, after, upto, run_id, PAGE_ROWS)
        ):
            yield await run_in_threadpool(_items, _metric_item, rows)
            after = rows[-1]["position"]

    async def _look(self) -> bool:
        """Read at most a page of what is new. Returns whether there is more."""
        head = await run_in_threadpool(self._reader.head)
        if head == self.mark:
            return False
        upto, items = await run_in_threadpool(self._read, self.mark, head)
        self._looks.append(Look(upto, tuple(items)))
        self._remembered_items += len(items)
        while len(self._looks) > REMEMBERED_LOOKS or self._remembered_items > REMEMBERED_ITEMS:
            oldest = self._looks.popleft()
            self._floor = oldest.upto
            self._remembered_items -= len(oldest.items)
        self.mark = upto
        self._tell()
        return upto != head

    def _tell(self) -> None:
        """Wake all waiting streams, which all hold this event, and make a new event for later ones.

        A condition would not do: its lock breaks when a stream whose reader has gone is cancelled twice.
        """
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _read(self, after: Mark, head: Mark) -> tuple[Mark, list[Item]]:
        """The next page of all runs' records and events, and the mark that it reaches.

        Events come with the last page of records: the one that ends a run must not be told before the run's records.
        """
        records = self._reader.metrics_between(after.metric, head.metric, None, PAGE_ROWS)
        if len(records) == PAGE_ROWS:
            return Mark(after.event, records[-1]["position"]), _items(_metric_item, records)
        events = self._reader.events_between(after.event, head.event, None, PAGE_ROWS)
        upto = Mark(events[-1]["seq"] if len(events) == PAGE_ROWS else head.event, head.metric)
        return upto, [*_items(_metric_item, records), *_items(_event_item, events)]


def _items(make: Callable[[dict[str, Any]], Item], rows: Sequence[dict[str, Any]]) -> list[Item]:
    return [make(row) for row in rows]


def _take(records: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return list(islice(records, count))


def _event_item(row: dict[str, Any]) -> Item:
    ends = RunState(row["data"]["state"]).is_terminal if row["kind"] == EventKind.STATE else None
    return Item("event", row["run_id"], Mark(event=row["seq"]), event_view(row).model_dump_json(), ends)


def _metric_item(row: dict[str, Any]) -> Item:
    body = json.dumps({"run_id": row["run_id"], **redact(metric_view(row["record"]).model_dump())})
    return Item("metric", row["run_id"], Mark(metric=row["position"]), body, None)


def _between(item: Item, after: Mark, upto: Mark) -> bool:
    if item.kind == "event":
        return after.event < item.mark.event <= upto.event
    return after.metric < item.mark.metric <= upto.metric
