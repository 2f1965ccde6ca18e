"""Connections that say nothing, or half of something, or do not read: closed after seconds, and never in the way."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from gemfleet.launcher.api import connections, gate
from gemfleet.launcher.api.routes.dashboard import plotly_script
from gemfleet.launcher.api.settings import Tokens
from support.servers.api_live import Live, serve

TOKENS = Tokens(read="r" * 43, admin="a" * 43)
BEARER = {"Authorization": f"Bearer {TOKENS.admin}"}
HALF = b"GET /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: "
SECONDS = 1.0


@pytest.fixture
def hasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """A server that asks for tokens, waits for a second, and bears 20 strangers."""
    for name in ("HEADER_SECONDS", "STALL_SECONDS"):
        monkeypatch.setattr(connections, name, SECONDS)
    monkeypatch.setattr(gate, "BODY_SECONDS", SECONDS)
    monkeypatch.setattr(connections, "MOST_STRANGERS", 20)
    yield from serve(tmp_path, TOKENS)


def opened(live: Live, said: bytes = b"") -> socket.socket:
    parts = urlsplit(live.url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10)
    connection.sendall(said)
    return connection


def is_closed(connection: socket.socket, seconds: float = 0.0) -> bool:
    """Whether the other side has closed it, or does so within these seconds; what it says is dropped."""
    connection.settimeout(max(seconds, 0.01))
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.parametrize("said", [b"", b"G", HALF])
def test_who_says_too_little_is_cut_off_after_seconds(hasty: Live, said: bytes) -> None:
    with opened(hasty, said) as connection:
        assert is_closed(connection, 5 * SECONDS)


def test_who_says_it_letter_by_letter_is_cut_off_too(hasty: Live) -> None:
    with opened(hasty, HALF) as connection:
        begun = time.monotonic()
        while not is_closed(connection, 0.1):
            assert time.monotonic() - begun < 5 * SECONDS
            connection.sendall(b"x")


def test_a_connection_that_was_answered_does_not_stay_for_ever(hasty: Live) -> None:
    with opened(hasty, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"G")
        assert is_closed(connection, 5 * SECONDS)


def test_strangers_are_bounded_in_number_and_keep_nobody_out(hasty: Live) -> None:
    strangers = [opened(hasty, HALF) for _ in range(100)]
    begun = time.monotonic()
    assert hasty.get("/api/v1/runs", headers=BEARER)["object"] == "list"
    left = sum(not is_closed(connection) for connection in strangers)
    assert time.monotonic() - begun < 5
    assert left <= 20
    for connection in strangers:
        connection.close()


def test_who_shows_no_token_stays_a_stranger(hasty: Live) -> None:
    """Pages that anybody may open would else hold places as well."""
    asset = b"GET /assets/plotly.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    readers = [opened(hasty, asset) for _ in range(60)]
    assert hasty.get("/api/v1/runs", headers=BEARER)["object"] == "list"
    for connection in readers:
        connection.close()


def test_who_does_not_read_is_cut_off(hasty: Live) -> None:
    with opened(hasty) as connection:
        connection.sendall(b"GET /assets/plotly.js HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        time.sleep(3 * SECONDS)
        connection.settimeout(5)
        received = 0
        with suppress(ConnectionResetError):
            while chunk := connection.recv(1 << 20):
                received += len(chunk)
        assert received < plotly_script().stat().st_size  # the rest was dropped


def test_a_body_that_does_not_come_is_not_waited_for(hasty: Live) -> None:
    head = f"POST /api/v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKENS.admin}\r\n"
    kind = "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with opened(hasty, (head + kind).encode()) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")
        assert is_closed(connection, 5 * SECONDS)


def test_a_stream_whose_reader_listens_stays_open(hasty: Live) -> None:
    with hasty.client.stream("GET", "/api/v1/events", headers=BEARER) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("retry")
        time.sleep(3 * SECONDS)
        hasty.registry.add_event("alpha-2", "note", "still there")
        assert any("still there" in line for line in lines)
