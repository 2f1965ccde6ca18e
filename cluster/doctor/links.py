"""Measures the way from one node to another over a TCP connection, at a port that the kernel chooses, as for NCCL."""

from __future__ import annotations

import contextlib
import socket
import statistics
import struct
import threading
import time
from typing import Any

from ..network import family_of

CONNECT_SECONDS = 3.0
TRANSFER_SECONDS = 15.0
# A higher share of segments sent again is measured again: other traffic or a busy processor loses segments once, a bad
# cable loses them each time.
RESENT_WARN = 0.002
BLOCK = bytes(1 << 18)
# struct tcp_info of Linux 4.2 and later: tcpi_total_retrans and tcpi_segs_out, 32 bits each.
TCP_INFO_BYTES, RETRANSMITTED_AT, SENT_AT = 192, 100, 136


class Sink:
    """Listens at `address`. It reads each connection to its end and then answers one byte."""

    def __init__(self, address: str) -> None:
        self._listener = socket.create_server((address, 0), family=family_of(address), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stops listening."""
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts; `close` alone does not
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=_drain, args=(connection,), daemon=True).start()


def _drain(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        connection.settimeout(2 * TRANSFER_SECONDS)
        while connection.recv(1 << 20):
            pass
        connection.sendall(b"!")


def measure_link(address: str, port: int, size: int) -> dict[str, Any]:
    """Sends `size` bytes to a sink.

    problem:   why that failed; empty when it did not, and only then there is more
    latency_s: seconds until the connection was made
    speed:     bytes a second
    resent:    the share of segments that were sent again: the price of a lossy link. When it is suspicious, the median
               of this transfer and two more
    """
    measured = _transfer(address, port, size)
    if measured["problem"] or measured["resent"] <= RESENT_WARN:
        return measured
    more = [_transfer(address, port, size) for _ in range(2)]
    shares = [transfer["resent"] for transfer in [measured, *more] if not transfer["problem"]]
    return {**measured, "resent": statistics.median(shares)}


def _transfer(address: str, port: int, size: int) -> dict[str, Any]:
    started = time.monotonic()
    try:
        with socket.create_connection((address, port), timeout=CONNECT_SECONDS) as connection:
            connected = time.monotonic()
            connection.settimeout(TRANSFER_SECONDS)
            for _ in range(0, size, len(BLOCK)):
                connection.sendall(BLOCK)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
            took = time.monotonic() - connected
            resent, sent = _segments(connection)
    except OSError as error:
        return {"problem": error.strerror or str(error) or "no answer"}
    speed, share = size / max(took, 1e-9), resent / max(1, sent)
    return {"problem": "", "latency_s": connected - started, "speed": speed, "resent": share}


def _segments(connection: socket.socket) -> tuple[int, int]:
    """How many segments were sent again, and how many in all; zeros when the kernel does not tell."""
    if not hasattr(socket, "TCP_INFO"):
        return 0, 0
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    if len(info) < SENT_AT + 4:
        return 0, 0
    return struct.unpack_from("=I", info, RETRANSMITTED_AT)[0], struct.unpack_from("=I", info, SENT_AT)[0]
