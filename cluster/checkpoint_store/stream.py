"""One file to the head over a TCP connection of its own, which a call to the store announces.

Through Ray's calls every byte is copied into the object store and out of it again, and the object store's pages count
as the head's memory. So the store hands out a ticket for each upload: an address of the head, and a token that opens
one connection. A connection without a token is cut off. TCP holds the sender back, and the head keeps one buffer for
each connection.

    sender → head   the ticket's token (32 bytes), then exactly as many bytes as were announced
    head → sender   one byte, once all of them are written
"""

from __future__ import annotations

import hashlib
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from ..errors import StoreError

TOKEN_BYTES = 32
BUFFER_BYTES = 1 << 20
WRITE_OUT_BYTES = 8 << 20
CONNECT_SECONDS = 5.0
IDLE_SECONDS = 120.0
RECEIVED = b"\x01"


@dataclass(frozen=True)
class Ticket:
    """Where to send one file, and the token that opens the connection."""

    host: str
    port: int
    token: bytes


def receive_file(connection: socket.socket, descriptor: int, size: int) -> str:
    """Writes the next `size` bytes of the connection to a file. Returns their check. StoreError when fewer come."""
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
    """Makes the kernel write these bytes to the disk now, so that the sync at the end has little to wait for.

    On Linux the advice "not needed" does this; the bytes also leave the page cache once they are on the disk.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)


def send_file(ticket: Ticket, path: Path, size: int) -> tuple[str, str]:
    """Sends a file and waits until the head has written it. Returns its sha256 and its check, both in hexadecimal.

    The manifest keeps the sha256. The check is an XXH3 of 128 bits, which costs almost nothing beside the sending.
    ConnectionError when the head cannot be reached at all; StoreError when the connection breaks later.
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
    """The sha256 and the check of a file, see `send_file`."""
    digest, check, buffer = hashlib.sha256(), xxhash.xxh3_128(), bytearray(BUFFER_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            data = memoryview(buffer)[:count]
            digest.update(data)
            check.update(data)
    return digest.hexdigest(), check.hexdigest()
