"""The yardstick: the same bytes through a plain TCP connection on this machine, written and synced to the same disk."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

CHUNK_BYTES = 16 * 2**20


def send(port: int, size: int) -> None:
    """Connect and send `size` bytes."""
    chunk = os.urandom(CHUNK_BYTES)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for start in range(0, size, CHUNK_BYTES):
            connection.sendall(memoryview(chunk)[: min(CHUNK_BYTES, size - start)])


def receive(connection: socket.socket, target: Path) -> None:
    """Write what arrives to `target` until the other side closes, then sync it."""
    buffer = bytearray(CHUNK_BYTES)
    with target.open("wb") as file:
        while count := connection.recv_into(buffer):
            file.write(memoryview(buffer)[:count])
        file.flush()
        os.fsync(file.fileno())


def copy_seconds(size: int, folder: Path) -> float:
    """Seconds from the connection to the end of the sync, for `size` bytes from another process."""
    target = folder / "socket-copy"
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-m", "gemfleet.benchmarks.checkpoint.socket_copy"]
        sender = subprocess.Popen([*command, str(server.getsockname()[1]), str(size)])
        connection, _ = server.accept()
        started = time.perf_counter()
        with connection:
            receive(connection, target)
        seconds = time.perf_counter() - started
        sender.wait()
    target.unlink()
    return seconds


if __name__ == "__main__":
    send(int(sys.argv[1]), int(sys.argv[2]))
