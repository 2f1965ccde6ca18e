"""Servers of git repositories with LFS on the loopback address: https with a token, and ssh with a key."""

from __future__ import annotations

import base64
import getpass
import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

USER, TOKEN = "somebody", "a-throw-away-token"
BASIC = "Basic " + base64.b64encode(f"{USER}:{TOKEN}".encode()).decode()
LFS_JSON = "application/vnd.git-lfs+json"


@dataclass
class HttpsServer:
    """`git http-backend` and LFS's API over the bare repositories below `root`. `seen`: each request's credential."""

    root: Path
    port: int
    certificate: Path
    seen: list[str | None] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def https_server(root: Path, work: Path) -> Iterator[HttpsServer]:
    """Asks for USER and TOKEN. The certificate is made in `work`."""
    certificate, key = _certificate(work)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    facts = HttpsServer(root, server.server_address[1], certificate)
    server.facts = facts  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield facts
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _certificate(work: Path) -> tuple[Path, Path]:
    """A self-signed one for 127.0.0.1; skips the test where openssl is missing."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl (Debian: apt-get install openssl)")
    certificate, key = work / "server.pem", work / "server.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        self._answer(b"")

    def do_PUT(self) -> None:
        self._answer(self._body())

    def do_POST(self) -> None:
        self._answer(self._body())

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def _answer(self, body: bytes) -> None:
        facts: HttpsServer = self.server.facts  # type: ignore[attr-defined]
        facts.seen.append(self.headers.get("Authorization"))
        if self.headers.get("Authorization") != BASIC:
            self._send(401, b"a token is needed", "text/plain", {"WWW-Authenticate": 'Basic realm="git"'})
            return
        path, _, query = self.path.partition("?")
        if path.endswith("/info/lfs/objects/batch"):
            self._batch(facts, path, json.loads(body))
        elif "/lfs/" in path:
            self._object(facts.root / path.lstrip("/").replace("/lfs/", "/lfs/objects/", 1), body)
        else:
            self._backend(facts, path, query, body)

    def _batch(self, facts: HttpsServer, path: str, asked: dict[str, Any]) -> None:
        """Where each object is to be sent or read."""
        repository = path.removesuffix("/info/lfs/objects/batch")
        objects = []
        for entry in asked["objects"]:
            there = (facts.root / repository.lstrip("/") / "lfs" / "objects" / entry["oid"]).exists()
            href = {"href": f"https://{facts.host}{repository}/lfs/{entry['oid']}", "header": {"Authorization": BASIC}}
            if asked["operation"] == "upload":
                objects.append({**entry, **({} if there else {"actions": {"upload": href}})})
            elif there:
                objects.append({**entry, "actions": {"download": href}})
            else:
                objects.append({**entry, "error": {"code": 404, "message": "no such object"}})
        answer = {"transfer": "basic", "objects": objects}
        self._send(200, json.dumps(answer).encode(), LFS_JSON)

    def _object(self, path: Path, body: bytes) -> None:
        if self.command == "PUT":
            assert hashlib.sha256(body).hexdigest() == path.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
            self._send(200, b"", "text/plain")
        else:
            self._send(200, path.read_bytes(), "application/octet-stream")

    def _backend(self, facts: HttpsServer, path: str, query: str, body: bytes) -> None:
        """git's own CGI program."""
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(facts.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_USER": USER,
            "REMOTE_ADDR": "127.0.0.1",
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        status = int(headers.pop("Status", "200").split()[0])
        self._send(status, content, headers.pop("Content-Type", "text/plain"), headers)

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@dataclass(frozen=True)
class SshServer:
    """An sshd for this very user. `known_hosts`: its key; `agent`: the socket of an agent that holds a key it takes."""

    port: int
    known_hosts: Path
    agent: str

    def address(self, path: Path) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{path}"


@contextmanager
def ssh_server(work: Path, lfs: HttpsServer) -> Iterator[SshServer]:
    """Large files go where its `git-lfs-authenticate` says, to `lfs`. Skips the test where sshd is missing."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None or shutil.which("ssh-agent") is None:
        pytest.skip("needs sshd and ssh-agent (Debian: apt-get install openssh-server openssh-client)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # Debian's sshd asks for it; its own service would make it
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(work / name)], check=True)
    shutil.copyfile(work / "user.pub", work / "authorized_keys")
    (work / "bin").mkdir()
    _lfs_authenticate(work / "bin" / "git-lfs-authenticate", lfs)
    port = _free_port()
    settings = [
        *(
            f"Port {port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {work}/host",
            f"AuthorizedKeysFile {work}/authorized_keys",
        ),
        *(
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "PermitRootLogin prohibit-password",
            "PidFile none",
        ),
        f"SetEnv PATH={work}/bin:{os.environ['PATH']}",
    ]
    (work / "sshd_config").write_text("\n".join(settings) + "\n")
    server = subprocess.Popen([sshd, "-D", "-e", "-f", str(work / "sshd_config")], stderr=subprocess.DEVNULL)
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(work / "agent")], stdout=subprocess.DEVNULL)
    try:
        _wait(lambda: _listens(port) and (work / "agent").exists())
        environment = {**os.environ, "SSH_AUTH_SOCK": str(work / "agent")}
        subprocess.run(["ssh-add", "-q", str(work / "user")], env=environment, check=True)
        host_key = " ".join((work / "host.pub").read_text().split()[:2])
        (work / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
        yield SshServer(port, work / "known_hosts", str(work / "agent"))
    finally:
        for process in (server, agent):
            process.terminate()
            process.wait(10)


def _lfs_authenticate(path: Path, lfs: HttpsServer) -> None:
    """What servers such as Gitea and GitLab answer on `ssh HOST git-lfs-authenticate REPOSITORY upload|download`."""
    answer = {"href": f"https://{lfs.host}/NAME/info/lfs", "header": {"Authorization": BASIC}, "expires_in": 600}
    program = (
        f"#!{sys.executable}\nimport sys\n"
        f"print({json.dumps(answer)!r}.replace('NAME', sys.argv[1].rstrip('/').rsplit('/', 1)[-1]))\n"
    )
    path.write_text(program)
    path.chmod(0o755)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(ready: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.05)
