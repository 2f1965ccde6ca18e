"""s3rver, an S3 server of other people than moto's, on loopback: npm installs it once into the cache of the tests.

What it does not support: checksums at the end of a request, which it keeps as content (and so a user of it sets what
`ENVIRONMENT` sets); a key that is at once a file and a folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gemfleet.cluster.network import free_port
from support.places import REPOSITORY

PACKAGE = "s3rver@3.7.1"
INSTALL = ("install", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0", "--fetch-timeout=30000")
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "S3RVER",  # the one account that it knows
    "AWS_SECRET_ACCESS_KEY": "S3RVER",
    "AWS_REGION": "us-east-1",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
}
START_SECONDS = 60.0


@contextmanager
def s3rver_server() -> Iterator[dict[str, str]]:
    """The variables that name it and open it. Skips the test where it cannot be installed."""
    program, port = _installed(), free_port("127.0.0.1")
    with tempfile.TemporaryDirectory(prefix="gf-s3rver-") as folder:
        options = ["-d", folder, "-a", "127.0.0.1", "-p", str(port), "--silent", "--no-vhost-buckets"]
        process = subprocess.Popen(["node", str(program), *options], stdout=subprocess.DEVNULL)
        try:
            _wait_for(process, port)
            yield {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        finally:
            process.terminate()
            process.wait(timeout=30)


def _installed() -> Path:
    cache = Path(os.environ.get("GEMFLEET_TEST_CACHE") or REPOSITORY / ".cache" / "tests").resolve()
    folder = cache / PACKAGE
    program = folder / "node_modules" / "s3rver" / "bin" / "s3rver.js"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{PACKAGE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.is_file():
            _install(folder)
    return program


def _install(folder: Path) -> None:
    """Whole or not at all. Skips the test where npm, or what it asks, is not there."""
    if shutil.which("npm") is None:
        pytest.skip("s3rver, a second S3 server, needs npm")
    work = Path(tempfile.mkdtemp(prefix=".s3rver-", dir=folder.parent))
    try:
        command = ["npm", *INSTALL, f"--prefix={work}", PACKAGE]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            pytest.skip(f"s3rver, a second S3 server, cannot be installed: {' '.join(done.stderr.split())[:200]}")
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"s3rver did not start (exit code {process.poll()})")
