"""The yardstick: the same bytes through a plain TCP connection on this machine, written and synced to the same disk."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

CHUNK_BYTES = 16 * 2**20
# The other process: connects to a port and sends so many bytes.
SENDER = f"""
import os, socket, sys
port, size, chunk = int(sys.argv[1]), int(sys.argv[2]), memoryview(os.urandom({CHUNK_BYTES}))
with socket.create_connection(("127.0.0.1", port)) as connection:
    for start in range(0, size, len(chunk)):
        connection.sendall(chunk[: min(len(chunk), size - start)])
"""


def copy_seconds(size: int, folder: Path) -> float:
    """Seconds from the connection to the end of the sync, for `size` bytes from another process."""
    target, buffer = folder / "socket-copy", bytearray(CHUNK_BYTES)
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = subprocess.Popen([sys.executable, "-c", SENDER, str(server.getsockname()[1]), str(size)])
        connection, _ = server.accept()
        started = time.perf_counter()
        with connection, target.open("wb") as file:
            while count := connection.recv_into(buffer):
                file.write(memoryview(buffer)[:count])
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - started
        sender.wait()
    target.unlink()
    return seconds
