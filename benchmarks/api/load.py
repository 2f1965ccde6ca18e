"""Requests at a fixed rate and open event streams, from one event loop.

A request's time counts from the moment it was due, not from when it was sent: a server that falls behind cannot hide it
by making its clients wait (coordinated omission). The client's own work, some 0.6 ms, is in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx2


@dataclass
class Result:
    """Seconds of each request by kind, how many failed, and how many events each stream was told of."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failures: int = 0
    stream_events: list[int] = field(default_factory=list)


async def put_load(
    url: str, paths: Sequence[tuple[str, Callable[[], str]]], rate: float, seconds: float, streams: int, stream: str
) -> Result:
    """`rate` requests a second for `seconds`, turn by turn over `paths` (kind, path), beside `streams` open streams."""
    result = Result({kind: [] for kind, _ in paths}, 0, [0] * streams)

    async def request(kind: str, path: str, due: float) -> None:
        (await client.get(path)).raise_for_status()
        result.seconds[kind].append(time.perf_counter() - due)

    async def read_stream(number: int) -> None:
        async with client.stream("GET", stream, headers={"Accept": "text/event-stream"}) as answer:
            async for line in answer.aiter_lines():
                result.stream_events[number] += line.startswith("event: event")

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False) as client:
        readers = [asyncio.create_task(read_stream(number)) for number in range(streams)]
        while any(count == 0 for count in result.stream_events):  # each is told of the past first
            await asyncio.sleep(0.05)
        requests, begin = [], time.perf_counter()
        for number in range(int(rate * seconds)):
            due = begin + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            kind, path = paths[number % len(paths)]
            requests.append(asyncio.create_task(request(kind, path(), due)))
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
        result.failures = sum(1 for outcome in outcomes if outcome is not None)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    return result
