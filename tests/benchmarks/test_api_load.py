"""The load generator against a server that is slow by a known time."""

from __future__ import annotations

import asyncio

import pytest
from gemfleet.benchmarks.api.load import put_load

DELAY_SECONDS = 0.05


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each request after a while; /bad with an error, /stream with three events that then stay open."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            path = head.split()[1]
            if path == b"/stream":
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"event: event\ndata: {}\n\n" * 3)
                await asyncio.sleep(60)
            await asyncio.sleep(DELAY_SECONDS)
            status = b"500 No" if path == b"/bad" else b"200 OK"
            writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def measured(path: str, streams: int) -> tuple[list[float], int, list[int]]:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    result = await put_load(f"http://127.0.0.1:{port}", [("a", lambda: path)], 50.0, 0.4, streams, "/stream")
    server.close()
    return result.seconds["a"], result.failures, result.stream_events


def test_times_count_from_when_a_request_was_due() -> None:
    seconds, failures, events = asyncio.run(measured("/good", 2))
    assert len(seconds) == 20
    assert min(seconds) >= DELAY_SECONDS
    assert failures == 0
    assert events == [3, 3]


def test_an_answer_that_is_none_is_a_failure() -> None:
    _, failures, _ = asyncio.run(measured("/bad", 0))
    assert failures == pytest.approx(20)
