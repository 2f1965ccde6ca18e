"""Tells all open event streams what is new, with one look at the registry for all of them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gemfleet.cluster.registry_reader import Mark, RegistryReader
from gemfleet.cluster.run_registry import RunState
from starlette.concurrency import run_in_threadpool

from .redaction import redact
from .views import event_view, metric_view

log = logging.getLogger("gemfleet.api")
REMEMBERED_LOOKS = 500
SLOWEST_LOOKS = 25  # every so many looks, runs whose driver is gone are marked


@dataclass(frozen=True)
class Item:
    """One event or metrics record, ready to be sent. `mark`: how far a reader is that has seen it.

    ends_run: whether the run's state is now one that ends it; None where the state did not change
    """

    kind: str
    run_id: str
    mark: Mark
    body: str
    ends_run: bool | None


@dataclass(frozen=True)
class Look:
    """What one look at the registry found new, up to `upto`."""

    upto: Mark
    items: tuple[Item, ...]


class Feed:
    """Looks at the registry every `poll_seconds`; remembers the newest items, so that live streams read no disk."""

    def __init__(self, reader: RegistryReader, poll_seconds: float, housekeeping: Callable[[], object]) -> None:
        self._reader, self._poll_seconds, self._housekeeping = reader, poll_seconds, housekeeping
        self._looks: deque[Look] = deque()
        self._floor: Mark | None = None  # memory holds everything above it
        self._changed = asyncio.Event()
        self.closed = False
        self.mark = Mark()

    async def watch(self) -> None:
        """Look again and again until cancelled."""
        self.mark = self._floor = await run_in_threadpool(self._reader.head)
        looks = 0
        while True:
            try:
                if looks % SLOWEST_LOOKS == 0:
                    await run_in_threadpool(self._housekeeping)
                await self._look()
            except Exception:  # a full disk or a locked file passes; streams wait until it has
                log.exception("the registry could not be read; trying again")
            looks += 1
            await asyncio.sleep(self._poll_seconds)

    def close(self) -> None:
        """End all streams, so that the server can stop."""
        self.closed = True
        self._tell()

    async def wait(self, seen: Mark, timeout_seconds: float) -> bool:
        """Until something newer than `seen` is known, or the time is over; False once the feed is closed."""
        if not self.closed and seen.covers(self.mark):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), timeout_seconds)
        return not self.closed

    async def items(self, after: Mark, upto: Mark, run_id: str | None) -> list[Item]:
        """What happened between two marks, events before records; from memory where that reaches back far enough."""
        if self._floor is None or not after.covers(self._floor) or not self.mark.covers(upto):
            return await run_in_threadpool(self._read, after, upto, run_id)
        found: list[Item] = []
        for look in reversed(self._looks):
            if after.covers(look.upto):
                break
            found[:0] = [i for i in look.items if run_id in (None, i.run_id) and _between(i, after, upto)]
        return found

    async def _look(self) -> None:
        head = await run_in_threadpool(self._reader.head)
        if head == self.mark:
            return
        items = await run_in_threadpool(self._read, self.mark, head, None)
        self._looks.append(Look(head, tuple(items)))
        if len(self._looks) > REMEMBERED_LOOKS:
            self._floor = self._looks.popleft().upto
        self.mark = head
        self._tell()

    def _tell(self) -> None:
        """Wake all who wait. They wait for an event of their own time: a condition's lock does not survive that a
        stream whose reader has gone is cancelled twice.
        """
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _read(self, after: Mark, upto: Mark, run_id: str | None) -> list[Item]:
        records = self._reader.metrics_between(after.metric, upto.metric, run_id)
        events = self._reader.events_between(after.event, upto.event, run_id)
        return [*map(_metric_item, records), *map(_event_item, events)]


def _event_item(row: dict[str, Any]) -> Item:
    ends = RunState(row["data"]["state"]).is_terminal if row["kind"] == "state" else None
    return Item("event", row["run_id"], Mark(event=row["seq"]), event_view(row).model_dump_json(), ends)


def _metric_item(row: dict[str, Any]) -> Item:
    body = json.dumps({"run_id": row["run_id"], **redact(metric_view(row["record"]).model_dump())})
    return Item("metric", row["run_id"], Mark(metric=row["position"]), body, None)


def _between(item: Item, after: Mark, upto: Mark) -> bool:
    if item.kind == "event":
        return after.event < item.mark.event <= upto.event
    return after.metric < item.mark.metric <= upto.metric
