"""One way between two nodes, measured over a TCP connection at a port of the kernel's choice, as NCCL takes them."""

from __future__ import annotations

import contextlib
import socket
import statistics
import struct
import threading
import time
from typing import Any

CONNECT_SECONDS = 3.0
TRANSFER_SECONDS = 15.0
# The share of segments sent again that is worth a word. A burst of other traffic, or a busy processor, loses segments
# once; a bad cable loses them each time.
RESENT_WARN = 0.002
BLOCK = bytes(1 << 18)
# struct tcp_info of Linux 4.2 and later: tcpi_total_retrans and tcpi_segs_out, 32 bits each.
TCP_INFO_BYTES, RETRANSMITTED_AT, SENT_AT = 192, 100, 136


class Sink:
    """Listens at `address`, takes what comes on each connection, and answers its end with one byte."""

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.bind((address, 0))
        self._listener.listen(128)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts; closing alone would not
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
    """Send `size` bytes to a sink. `problem` is why that failed, else empty; speed in bytes a second.

    `resent`: the share of segments that had to be sent again, which is what a lossy link costs; where it is suspicious,
    the median of this transfer and two more.
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
    """Segments sent again, and in all; zeros where the kernel does not say."""
    if not hasattr(socket, "TCP_INFO"):
        return 0, 0
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    if len(info) < SENT_AT + 4:
        return 0, 0
    return struct.unpack_from("=I", info, RETRANSMITTED_AT)[0], struct.unpack_from("=I", info, SENT_AT)[0]
