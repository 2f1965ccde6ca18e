"""Files on their way to the head over plain TCP connections, one a file, announced by a call to the store.

Through Ray's calls every byte is copied into the object store and out of it again, and the object store's pages count
as the head's memory. So the store hands out a ticket for each upload: an address of the head, and a token that is good
for one connection. Whoever connects without one is cut off. TCP holds the sender back; the head keeps one buffer for a
connection.

    sender → head   the ticket's token (32 bytes), then exactly as many bytes as were announced
    head → sender   one byte, once all of them are written
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import xxhash

from ..errors import StoreError

log = logging.getLogger("gemfleet.cluster")
TOKEN_BYTES = 32
BUFFER_BYTES = 1 << 20
WRITE_OUT_BYTES = 8 << 20
CONNECTIONS = 64
CONNECT_SECONDS = 5.0
GREETING_SECONDS = 3.0
LOOK_SECONDS = 0.25
MOST_GUESTS = 256
MOST_TICKETS = 4096
IDLE_SECONDS = 120.0
RECEIVED = b"\x01"
Receive = Callable[[socket.socket], None]


@dataclass
class _Guest:
    """A connection that has not said a whole token yet, and until when (time.monotonic) it may."""

    connection: socket.socket
    until: float
    said: bytes = b""


@dataclass(frozen=True)
class Ticket:
    """Where to send one file to, and the token that opens the connection."""

    host: str
    port: int
    token: bytes


class StreamServer:
    """Listens at one address of this node. `expect` says what to do with the next connection that knows its token.

    One thread hears the greetings of all who connect. Who has not said a token after GREETING_SECONDS is cut off, and
    so is the oldest of them when there are more than MOST_GUESTS: none takes a place from one that knows its token.
    """

    def __init__(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family, backlog=MOST_GUESTS)
        self._socket.setblocking(False)
        self._host, self._port = host, int(self._socket.getsockname()[1])
        self._expected: dict[bytes, Receive] = {}
        self._guests: dict[socket.socket, _Guest] = {}  # oldest first
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        self._closed = False
        threading.Thread(target=self._hear_all, name="checkpoint-streams", daemon=True).start()

    def expect(self, receive: Receive) -> Ticket:
        token = secrets.token_bytes(TOKEN_BYTES)
        self._expected[token] = receive
        while len(self._expected) > MOST_TICKETS:
            self._expected.pop(next(iter(self._expected)), None)  # nobody came with it
        return Ticket(self._host, self._port, token)

    def close(self) -> None:
        self._closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread

    def _hear_all(self) -> None:
        with selectors.DefaultSelector() as selector, self._socket:
            selector.register(self._socket, selectors.EVENT_READ)
            while not self._closed:
                for key, _ in selector.select(LOOK_SECONDS):
                    if key.fileobj is self._socket:
                        self._welcome(selector)
                    else:
                        self._hear(selector, key.data)
                now = time.monotonic()
                for guest in [guest for guest in self._guests.values() if guest.until < now]:
                    self._send_away(selector, guest)
            for guest in list(self._guests.values()):
                self._send_away(selector, guest)

    def _welcome(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                time.sleep(LOOK_SECONDS)  # guests that leave make room
            return
        connection.setblocking(False)
        guest = self._guests[connection] = _Guest(connection, time.monotonic() + GREETING_SECONDS)
        selector.register(connection, selectors.EVENT_READ, guest)
        if len(self._guests) > MOST_GUESTS:
            self._send_away(selector, next(iter(self._guests.values())))

    def _hear(self, selector: selectors.BaseSelector, guest: _Guest) -> None:
        """One more part of a greeting. Whoever knows a token gets a thread, and a place once there is one."""
        if guest.connection not in self._guests:
            return  # sent away since it spoke
        try:
            part = guest.connection.recv(TOKEN_BYTES - len(guest.said))
        except BlockingIOError:
            return
        except OSError:
            part = b""
        guest.said += part
        if part and len(guest.said) < TOKEN_BYTES:
            return
        receive = self._expected.pop(guest.said, None)
        if receive is None:
            self._send_away(selector, guest)
            return
        selector.unregister(guest.connection)
        del self._guests[guest.connection]
        arguments = guest.connection, receive
        threading.Thread(target=self._serve, args=arguments, name="checkpoint-stream", daemon=True).start()

    def _send_away(self, selector: selectors.BaseSelector, guest: _Guest) -> None:
        selector.unregister(guest.connection)
        del self._guests[guest.connection]
        guest.connection.close()

    def _serve(self, connection: socket.socket, receive: Receive) -> None:
        try:
            with connection, self._places:
                connection.settimeout(IDLE_SECONDS)
                receive(connection)
                connection.sendall(RECEIVED)
        except (OSError, StoreError) as error:
            log.warning("a checkpoint's file did not arrive: %s", error)


def receive_file(connection: socket.socket, descriptor: int, size: int) -> str:
    """Write the next `size` bytes of the connection to a file; returns their check. StoreError when fewer came."""
    buffer = memoryview(bytearray(min(BUFFER_BYTES, max(1, size))))
    check, left, begun = xxhash.xxh3_128(), size, 0
    while left:
        count = connection.recv_into(buffer, min(len(buffer), left))
        if not count:
            raise StoreError(f"the sender stopped with {left:,} of {size:,} bytes to go")
        data = buffer[:count]
        check.update(data)
        while data:
            data = data[os.write(descriptor, data) :]
        left -= count
        if size - left - begun >= WRITE_OUT_BYTES:
            _begin_writing_out(descriptor, begun, size - left - begun)
            begun = size - left
    return check.hexdigest()


def _begin_writing_out(descriptor: int, offset: int, size: int) -> None:
    """Let the kernel write these bytes to the disk from now on, so that the sync at the end has little to wait for.

    To say that they are not needed has this effect on Linux; once on the disk they leave the page cache, too.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)


def send_file(ticket: Ticket, path: Path, size: int) -> tuple[str, str]:
    """Send a file and wait until the head has written it; its sha256 and its check, both in hexadecimal.

    The check is an XXH3 of 128 bits, whose cost cannot be seen beside that of sending; sha256 is what is kept.

    ConnectionError when the head cannot be reached at all; StoreError when the connection broke later.
    """
    try:
        connection = socket.create_connection((ticket.host, ticket.port), CONNECT_SECONDS)
    except OSError as error:
        raise ConnectionError(f"{ticket.host}:{ticket.port} cannot be reached ({error})") from error
    with connection, path.open("rb") as file, ThreadPoolExecutor(1) as pool:
        hashes = pool.submit(file_hashes, path)
        try:
            connection.settimeout(IDLE_SECONDS)
            connection.sendall(ticket.token)
            connection.sendfile(file, count=size or None)
            if connection.recv(1) != RECEIVED:
                raise StoreError("the head closed the connection")
        except OSError as error:
            raise StoreError(f"the connection to the head broke ({error})") from error
        return hashes.result()


def file_hashes(path: Path) -> tuple[str, str]:
    """sha256 and check of a file, see `send_file`."""
    digest, check, buffer = hashlib.sha256(), xxhash.xxh3_128(), bytearray(BUFFER_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            data = memoryview(buffer)[:count]
            digest.update(data)
            check.update(data)
    return digest.hexdigest(), check.hexdigest()
