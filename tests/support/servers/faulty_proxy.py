"""An HTTP proxy before an object store that disturbs some of its answers."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Kind = Literal["refuse", "cut request", "cut answer", "slow"]
FRAMING = ("expect", "transfer-encoding", "content-length")
ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"


@dataclass
class Fault:
    """What is done to requests.

    kind:    `refuse` answers with an error of the store; `cut request` passes nothing on and closes without
             an answer; `cut answer` sends half of an answer's body, or nothing of one without, and closes; `slow`
             answers late
    times:   how many requests it meets; None: all
    meets:   which requests, by method and path
    """

    kind: Kind
    status: int = 503
    code: str = "SlowDown"
    message: str = "Please reduce your request rate."
    seconds: float = 0.3
    times: int | None = None
    meets: Callable[[str, str], bool] = lambda method, path: True
    met: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def takes(self, method: str, path: str) -> bool:
        with self._lock:
            if not self.meets(method, path) or (self.times is not None and self.met >= self.times):
                return False
            self.met += 1
            return True


class FaultyProxy:
    """Passes requests on to `upstream`. `fault`: the present one; None: it disturbs nothing."""

    def __init__(self, upstream: str) -> None:
        self.fault: Fault | None = None
        parts = urlsplit(upstream)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def __getattr__(self, name: str) -> Any:
                if not name.startswith("do_"):
                    raise AttributeError(name)
                return partial(_handle, self, proxy.fault, str(parts.hostname), int(parts.port or 80))

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[FaultyProxy]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def _handle(request: BaseHTTPRequestHandler, fault: Fault | None, host: str, port: int) -> None:
    if fault is not None and not fault.takes(request.command, request.path):
        fault = None
    body = _body(request)
    if fault is not None and fault.kind == "refuse":
        _answer(request, fault.status, {}, ERROR.format(code=fault.code, message=fault.message).encode())
        return
    if fault is not None and fault.kind == "slow":
        threading.Event().wait(fault.seconds)
    if fault is not None and fault.kind == "cut request":
        request.close_connection = True
        return
    upstream = http.client.HTTPConnection(host, port, timeout=30)
    headers = {name: value for name, value in request.headers.items() if name.lower() not in FRAMING}
    upstream.request(request.command, request.path, body=body, headers=headers)
    answer = upstream.getresponse()
    content = answer.read()
    upstream.close()
    half = fault is not None and fault.kind == "cut answer"
    if half and not content:
        request.close_connection = True
        return
    _answer(request, answer.status, dict(answer.getheaders()), content, half)


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    parts = []
    while size := int(request.rfile.readline().split(b";")[0], 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    while request.rfile.readline().strip():  # trailers
        pass
    return b"".join(parts)


def _answer(
    request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes, half: bool = False
) -> None:
    request.send_response(status)
    dropped = ("transfer-encoding", "content-length", "connection", "server", "date")
    for name, value in headers.items():
        if name.lower() not in dropped:
            request.send_header(name, value)
    length = headers.get("Content-Length", str(len(content))) if request.command == "HEAD" else str(len(content))
    request.send_header("Content-Length", length)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content[: len(content) // 2] if half else content)
    if half:
        request.close_connection = True
