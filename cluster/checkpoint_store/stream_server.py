"""The head's ear for checkpoint streams: takes connections that know a token, and hands each to its receiver."""

from __future__ import annotations

import errno
import logging
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ..errors import StoreError
from ..network import family_of
from .stream import IDLE_SECONDS, RECEIVED, TOKEN_BYTES, Ticket

log = logging.getLogger("gemfleet.cluster")
CONNECTIONS = 64
GREETING_SECONDS = 3.0
LOOK_SECONDS = 0.25
MOST_GUESTS = 256
MOST_TICKETS = 4096
Receive = Callable[[socket.socket], None]


@dataclass
class _Guest:
    """A connection that has not sent a whole token yet. It has time until `until` (time.monotonic)."""

    connection: socket.socket
    until: float
    said: bytes = b""


class StreamServer:
    """Listens at one address of this node. `expect` says what to do with the next connection that knows its token.

    One thread reads the tokens of all connections. It cuts off a connection that sent no token within GREETING_SECONDS,
    and the oldest of them when more than MOST_GUESTS wait. So none of them takes a place from one that knows its token.
    """

    def __init__(self, host: str) -> None:
        self._socket = socket.create_server((host, 0), family=family_of(host), backlog=MOST_GUESTS)
        self._socket.setblocking(False)
        self._host, self._port = host, int(self._socket.getsockname()[1])
        self._expected: dict[bytes, Receive] = {}
        self._guests: dict[socket.socket, _Guest] = {}  # oldest first
        self._places = threading.BoundedSemaphore(CONNECTIONS)
        self._closed = False
        threading.Thread(target=self._hear_all, name="checkpoint-streams", daemon=True).start()

    def expect(self, receive: Receive) -> Ticket:
        """A ticket for one connection, which a thread then gives to `receive`."""
        token = secrets.token_bytes(TOKEN_BYTES)
        self._expected[token] = receive
        while len(self._expected) > MOST_TICKETS:
            self._expected.pop(next(iter(self._expected)), None)  # the oldest: nobody came with it
        return Ticket(self._host, self._port, token)

    def close(self) -> None:
        """Stops listening and cuts off whoever sent no token yet."""
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
        """Reads one more part of a token. A connection that knows one gets a thread, and a place once there is one."""
        if guest.connection not in self._guests:
            return  # cut off after it sent this
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
