"""Files that come to the head over connections of their own: whole or not at all, and only with a ticket. No Ray."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import ray
from gemfleet.cluster.checkpoint_store import client, stream_server
from gemfleet.cluster.checkpoint_store.client import StoreClient
from gemfleet.cluster.checkpoint_store.commit import CheckpointDisk
from gemfleet.cluster.checkpoint_store.manifest import FileEntry
from gemfleet.cluster.checkpoint_store.stream import Ticket, send_file
from gemfleet.cluster.checkpoint_store.stream_server import StreamServer
from gemfleet.cluster.errors import StoreError

CONTENT = os.urandom(3 << 20) + b"odd"
ENTRY = FileEntry("a.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def server() -> Iterator[StreamServer]:
    server = StreamServer("127.0.0.1")
    yield server
    server.close()


@pytest.fixture
def disk(tmp_path: Path) -> CheckpointDisk:
    disk = CheckpointDisk(tmp_path / "checkpoints")
    disk.begin_attempt()
    disk.begin(3, 1, "a.bin")
    return disk


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(CONTENT)
    return tmp_path / "source"


def ticket_for(server: StreamServer, disk: CheckpointDisk) -> Ticket:
    return server.expect(partial(disk.receive, 3, 1, "a.bin", len(CONTENT)))


def connect(ticket: Ticket) -> socket.socket:
    return socket.create_connection((ticket.host, ticket.port), 5)


def test_a_file_arrives_whole(server: StreamServer, disk: CheckpointDisk, source: Path) -> None:
    sha256, check = send_file(ticket_for(server, disk), source, len(CONTENT))
    assert sha256 == ENTRY.sha256
    disk.finish(3, 1, ENTRY, check)
    assert disk.declare(3, 1, 0, [ENTRY], [0]) is not None
    assert (disk.shelf.at_hand(3) / "a.bin").read_bytes() == CONTENT


def test_an_empty_file_arrives(server: StreamServer, disk: CheckpointDisk, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    sha256, check = send_file(server.expect(partial(disk.receive, 3, 1, "a.bin", 0)), tmp_path / "empty", 0)
    disk.finish(3, 1, FileEntry("a.bin", 0, sha256), check)


def test_bytes_changed_on_the_way_are_refused(server: StreamServer, disk: CheckpointDisk, source: Path) -> None:
    """What the head counted is not what the sender counted: the file is read again, and its sha256 differs."""
    source.write_bytes(b"X" + CONTENT[1:])
    _, check = send_file(ticket_for(server, disk), source, len(CONTENT))
    for claimed in ("0" * len(check), None):
        with pytest.raises(StoreError, match="incomplete or damaged"):
            disk.finish(3, 1, ENTRY, claimed)


@pytest.mark.parametrize("greeting", [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(32), bytes(64)])
def test_whoever_has_no_ticket_is_cut_off(server: StreamServer, disk: CheckpointDisk, greeting: bytes) -> None:
    ticket = ticket_for(server, disk)
    with connect(ticket) as connection:
        with suppress(OSError):  # cut off before it had read all that was sent
            connection.sendall(greeting)
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    assert not (disk.root / ".incoming-3-1" / ".a.bin.part").exists()


def test_a_ticket_is_good_once(server: StreamServer, disk: CheckpointDisk, source: Path) -> None:
    ticket = ticket_for(server, disk)
    send_file(ticket, source, len(CONTENT))
    with pytest.raises(StoreError, match=r"closed the connection|broke"):
        send_file(ticket, source, len(CONTENT))


def test_it_listens_at_one_address_only(server: StreamServer, disk: CheckpointDisk) -> None:
    """127.0.0.2 is this machine too: a socket bound to all addresses would accept."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", ticket_for(server, disk).port), 5)


def hold(address: Ticket, stop: threading.Event) -> None:
    """Connect, say nothing, and come again when cut off, until told to stop."""
    while not stop.is_set():
        with suppress(OSError), connect(address) as connection:
            connection.settimeout(0.5)
            connection.recv(1)


def test_silent_connections_hinder_nobody_who_has_a_ticket(
    server: StreamServer, disk: CheckpointDisk, source: Path
) -> None:
    """More of them than places, each coming again when cut off: files arrive meanwhile, at the first attempt."""
    stop, address = threading.Event(), ticket_for(server, disk)
    number = stream_server.CONNECTIONS + 20
    squatters = [threading.Thread(target=hold, args=(address, stop), daemon=True) for _ in range(number)]
    for squatter in squatters:
        squatter.start()
    while len(server._guests) < stream_server.CONNECTIONS:
        time.sleep(0.01)
    for _ in range(5):
        disk.begin(3, 1, "a.bin")
        _, check = send_file(ticket_for(server, disk), source, len(CONTENT))
        disk.finish(3, 1, ENTRY, check)
    stop.set()
    for squatter in squatters:
        squatter.join(20)


def test_the_oldest_of_too_many_silent_connections_is_cut_off(
    server: StreamServer, disk: CheckpointDisk, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_server, "MOST_GUESTS", 10)
    monkeypatch.setattr(stream_server, "GREETING_SECONDS", 600.0)
    ticket = ticket_for(server, disk)
    silent = [connect(ticket) for _ in range(15)]
    for oldest in silent[:5]:
        oldest.settimeout(20)
        assert oldest.recv(1) == b""
    assert len(server._guests) == 10
    send_file(ticket, source, len(CONTENT))
    for connection in silent:
        connection.close()


def test_silent_connections_are_cut_off_after_seconds(
    server: StreamServer, disk: CheckpointDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_server, "GREETING_SECONDS", 0.2)
    ticket = ticket_for(server, disk)
    for said in (b"", ticket.token[:-1]):
        with connect(ticket) as connection:
            connection.sendall(said)
            assert connection.recv(1) == b""
    assert not server._guests


def test_it_goes_on_after_the_process_had_no_descriptors_left(
    server: StreamServer, disk: CheckpointDisk, source: Path
) -> None:
    ticket = ticket_for(server, disk)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    connection = socket.socket()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))  # accepting fails while connecting does not
    try:
        connection.connect((ticket.host, ticket.port))
        time.sleep(0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    connection.close()
    send_file(ticket, source, len(CONTENT))


class ByCalls:
    """The store's methods called directly, and its streams at a port where every connection is closed at once."""

    def __init__(self, disk: CheckpointDisk, port: int) -> None:
        self.disk, self.port, self.handle, self.write = disk, port, self, self
        self.asked: list[str] = []

    def call(self, method: str, *arguments: Any) -> Any:
        self.asked.append(method)
        if method == "begin":
            return self.disk.begin(*arguments[:3])
        if method == "open_stream":
            return Ticket("127.0.0.1", self.port, bytes(32))
        return getattr(self.disk, method)(*arguments)

    def remote(self, *arguments: Any) -> None:
        self.disk.write(*arguments)


def test_a_checkpoint_goes_through_calls_when_its_streams_are_cut_off(
    server: StreamServer, disk: CheckpointDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    (tmp_path / "upload").mkdir()
    (tmp_path / "upload" / "a.bin").write_bytes(CONTENT)
    store = ByCalls(disk, ticket_for(server, disk).port)
    assert StoreClient(cast(Any, store), 1).upload(3, tmp_path / "upload", 0, [0])
    assert (disk.shelf.at_hand(3) / "a.bin").read_bytes() == CONTENT
    assert store.asked.count("open_stream") == client.STREAM_ATTEMPTS


def test_a_sender_that_stops_early_poisons_the_file(server: StreamServer, disk: CheckpointDisk, source: Path) -> None:
    ticket = ticket_for(server, disk)
    with connect(ticket) as connection:
        connection.sendall(ticket.token + CONTENT[:-1])
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    with pytest.raises(StoreError, match="is not published"):
        disk.finish(3, 1, ENTRY)
    disk.begin(3, 1, "a.bin")
    _, check = send_file(ticket_for(server, disk), source, len(CONTENT))
    disk.finish(3, 1, ENTRY, check)


def test_an_upload_that_was_given_up_does_not_poison_the_next(
    server: StreamServer, disk: CheckpointDisk, source: Path
) -> None:
    old = ticket_for(server, disk)
    with connect(old) as connection:
        connection.sendall(old.token + CONTENT[:100])
        while not (disk.root / ".incoming-3-1" / ".a.bin.part").exists():
            time.sleep(0.01)
        disk.begin(3, 1, "a.bin")
        _, check = send_file(ticket_for(server, disk), source, len(CONTENT))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    disk.finish(3, 1, ENTRY, check)


def test_a_head_that_cannot_be_reached_is_told_apart(server: StreamServer, disk: CheckpointDisk, source: Path) -> None:
    ticket = ticket_for(server, disk)
    server.close()
    with pytest.raises(ConnectionError, match="cannot be reached"):
        send_file(ticket, source, len(CONTENT))
