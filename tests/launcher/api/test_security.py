"""Hostile requests: each is refused, and says why."""

from __future__ import annotations

import json
import os
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from gemfleet.cluster.errors import ClusterError
from gemfleet.launcher.api.settings import ApiSettings, Tokens, is_loopback
from gemfleet.launcher.api.tokens import load_tokens, same_secret
from support.servers.api_live import Live, serve

TOKENS = Tokens(read="r" * 43, admin="a" * 43)
VALID: dict[str, Any] = {"train": {"model": "demo", "data": {"train": "demo"}}}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Live]:
    """A server that asks for tokens."""
    yield from serve(tmp_path, TOKENS)


def raw(live: Live, request: bytes) -> bytes:
    """The answer to bytes that no client library would send."""
    parts = urlsplit(live.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
            if b"\r\n\r\n" in answer and b"}" in answer:
                break
    return answer


@pytest.mark.parametrize(
    "path",
    [
        *("/api/v1/runs/..%2f..%2fetc", "/api/v1/runs/%2e%2e", "/api/v1/runs/..", "/api/v1/runs/alpha-1%00"),
        *("/api/v1/runs/../../../etc/passwd/logs", "/api/v1/runs/alpha-1/checkpoints/..%2f4/download"),
        *("/api/v1/runs/alpha-1/checkpoints/-4/download", "/api/v1/runs/alpha-1/checkpoints/4e0/download"),
        *("/api/v1/runs/alpha-1/logs?rank=../../config", "/assets/..%2f..%2fapp.py", "/assets/../app.py"),
        *("/assets/%2e%2e%2fapp.py", "/assets/app.py", "/api/v1/runs/alpha-1/checkpoints/%C2%B2/download"),
    ],
)
def test_no_path_of_a_request_leads_anywhere(live: Live, path: str) -> None:
    answer = raw(live, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    status = int(answer.split()[1])
    assert status in (404, 422), answer
    assert b"root:" not in answer


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8266", "127.0.0.1.evil.example", "localhost@evil", ""])
def test_a_name_that_is_not_ours_is_refused(live: Live, host: str) -> None:
    live.get("/api/v1/runs", status=421, headers={"Host": host})
    assert b" 421 " in raw(live, f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())


def test_a_page_of_another_site_can_change_nothing(live: Live) -> None:
    live.post("/api/v1/runs/alpha-2/stop", 403, headers={"Origin": "https://evil.example"})
    live.post("/api/v1/runs/alpha-2/stop", 403, headers={"Origin": "null"})
    live.post("/api/v1/runs/alpha-2/stop", 403, headers={"Origin": "http://127.0.0.1:1"})
    assert not live.registry.stop_requested("alpha-2")
    live.post("/api/v1/runs/alpha-2/stop", 202, headers={"Origin": live.url})


def test_a_body_that_is_too_large_is_refused_announced_or_not(live: Live) -> None:
    body = json.dumps({"config": {**VALID, "name": "x" * (1 << 20)}}).encode()
    kind = {"Content-Type": "application/json"}
    live.post("/api/v1/runs", 413, content=body, headers=kind)
    live.post("/api/v1/runs", 413, content=iter([body[:600_000], body[600_000:]]), headers=kind)
    assert live.submitter.started == []


def test_without_a_token_or_with_a_wrong_one_nothing_is_told(guarded: Live) -> None:
    for headers in (
        {},
        bearer("x"),
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {TOKENS.admin}"},
        bearer(TOKENS.read + "r"),
    ):
        answer = guarded.client.get("/api/v1/runs", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert guarded.client.get("/metrics", headers=headers).status_code == 401
        assert guarded.client.get("/api/v1/runs/nothing", headers=headers).status_code == 401
    assert guarded.get("/healthz")["status"] == "ok"


def test_the_read_only_token_changes_nothing(guarded: Live) -> None:
    assert guarded.get("/api/v1/runs", headers=bearer(TOKENS.read))["object"] == "list"
    guarded.post("/api/v1/runs/alpha-2/stop", 403, headers=bearer(TOKENS.read))
    guarded.post("/api/v1/runs/alpha-1/resume", 403, headers=bearer(TOKENS.read))
    guarded.post("/api/v1/runs", 403, headers=bearer(TOKENS.read), json={"config": VALID})
    change = {"tags": {"team": "search"}, "archived": True}
    assert guarded.client.patch("/api/v1/runs/alpha-1", headers=bearer(TOKENS.read), json=change).status_code == 403
    assert not guarded.registry.get_run("alpha-1").archived
    assert guarded.registry.get_run("alpha-1").state == "succeeded"
    assert not guarded.registry.stop_requested("alpha-2")
    guarded.post("/api/v1/runs/alpha-2/stop", 202, headers=bearer(TOKENS.admin))


def test_comparing_tokens_takes_as_long_for_a_near_miss_as_for_a_far_one() -> None:
    near, far = TOKENS.admin[:-1] + "b", "b" * 43
    times: dict[str, list[float]] = {near: [], far: []}
    for _ in range(400):
        for guess, taken in times.items():
            started = time.perf_counter()
            for _ in range(50):
                same_secret(guess, TOKENS.admin)
            taken.append(time.perf_counter() - started)
    medians = [statistics.median(taken) for taken in times.values()]
    assert max(medians) / min(medians) < 1.2


def test_a_bind_beyond_this_machine_needs_tokens(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "head.example.org"):
        assert not is_loopback(host)
        with pytest.raises(ValueError, match="needs tokens"):
            ApiSettings(home=tmp_path, host=host)


def test_tokens_are_files_that_only_their_owner_reads(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        tokens = load_tokens(tmp_path)
    finally:
        os.umask(before)
    assert tokens.read != tokens.admin
    assert load_tokens(tmp_path) == tokens
    for name in ("read.token", "admin.token"):
        assert (tmp_path / "api" / name).stat().st_mode & 0o777 == 0o600
    (tmp_path / "api" / "read.token").chmod(0o644)
    with pytest.raises(ClusterError, match="chmod 600"):
        load_tokens(tmp_path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": "/etc"}, "config.train.model"),
        ({"model": "../secrets"}, "config.train.model"),
        ({"model": "~/model"}, "config.train.model"),
        ({"model": "demo/../../x"}, "config.train.model"),
        ({"model": "file:///etc"}, "config.train.model"),
        ({"model": "ext::sh -c id"}, "config.train.model"),
        ({"model": "https://me:secret@hub/x"}, "config.train.model"),
        ({"model": "git@hub:x"}, "config.train.model"),
        ({"model": "weights.pt"}, "config.train.model"),
        ({"data": {"train": "/etc/passwd"}}, "config.train.data.train"),
        ({"data": {"train": "loader.py"}}, "config.train.data.train"),
        ({"data": {"train": "rows\0.jsonl"}}, "config.train.data.train"),
        ({"data": {"train": "\\\\host\\share"}}, "config.train.data.train"),
    ],
)
def test_a_submitted_configuration_names_no_code_and_no_foreign_path(
    live: Live, change: dict[str, Any], field: str
) -> None:
    problem = live.post("/api/v1/runs", 422, json={"config": {"train": {**VALID["train"], **change}}})
    assert field.removeprefix("config.") in [error["field"] for error in problem["errors"]]
    assert live.submitter.started == []


def test_a_link_below_an_allowed_folder_does_not_lead_out(live: Live) -> None:
    data = live.home / "data"
    data.mkdir()
    (data / "out").symlink_to("/etc")
    (data / "rows.jsonl").write_text("{}\n")
    refused = {"train": {"model": "demo", "data": {"train": str(data / "out" / "passwd")}}}
    live.post("/api/v1/runs", 422, json={"config": refused})
    allowed = {"train": {"model": "demo", "data": {"train": str(data / "rows.jsonl")}}}
    live.post("/api/v1/runs", 201, json={"config": allowed})


def test_a_submitted_configuration_reaches_no_other_cluster(live: Live) -> None:
    config = {**VALID, "cluster": {"address": "10.0.0.1:6379"}}
    (error,) = live.post("/api/v1/runs", 422, json={"config": config})["errors"]
    assert error["field"] == "cluster.address"


def test_a_submitted_configuration_opens_nothing(live: Live) -> None:
    config = {**VALID, "api": {"host": "0.0.0.0", "data_roots": ["data"]}}
    (error,) = live.post("/api/v1/runs", 422, json={"config": config})["errors"]
    assert error["field"] == "api"


def test_answers_cannot_be_framed_or_run_foreign_code(live: Live) -> None:
    headers = live.client.get("/").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
