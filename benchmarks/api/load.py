"""Requests at a fixed rate and open event streams, from one event loop over plain sockets.

A request's time counts from the moment it was due, not from when it was sent: a server that falls behind cannot hide it
by making its clients wait (coordinated omission).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


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
    address = urlsplit(url)
    host, port = address.hostname or "", address.port or 80
    result = Result({kind: [] for kind, _ in paths}, 0, [0] * streams)
    readers = [asyncio.create_task(_read_stream(host, port, stream, result, number)) for number in range(streams)]
    while any(count == 0 for count in result.stream_events):  # each is told of the past first
        await asyncio.sleep(0.05)
    idle: list[Connection] = []
    requests = []
    begin = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = begin + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        kind, path = paths[number % len(paths)]
        requests.append(asyncio.create_task(_request(host, port, path(), due, idle, result.seconds[kind])))
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    result.failures = sum(1 for outcome in outcomes if outcome is not None)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    for _, writer in idle:
        writer.close()
    return result


async def _request(host: str, port: int, path: str, due: float, idle: list[Connection], seconds: list[float]) -> None:
    """One request over a kept connection. Raises for any answer but 200."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    while True:
        kept = bool(idle)
        reader, writer = idle.pop() if idle else await asyncio.open_connection(host, port)
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            break
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            if not kept:  # a server may close a connection that it was kept too long; a fresh one must be answered
                raise
    length = next(int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-length:"))
    await reader.readexactly(length)
    seconds.append(time.perf_counter() - due)
    idle.append((reader, writer))
    if " 200 " not in head.splitlines()[0] + " ":
        raise RuntimeError(head.splitlines()[0])


async def _read_stream(host: str, port: int, path: str, result: Result, number: int) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n\r\n".encode())
        while line := await reader.readline():
            if line.startswith(b"event: event"):
                result.stream_events[number] += 1
    finally:
        writer.close()
