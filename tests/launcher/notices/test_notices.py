"""Webhooks are told of a run: by whoever ends it, signed, again after a failure, and never in the way."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from gemfleet.cluster.registry.run_recorder import RunRecorder
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.launcher.notices import send as sending
from gemfleet.launcher.notices.send import send
from gemfleet.launcher.notices.start import check_notices, first_tries, notices_of
from gemfleet.launcher.run.session import RunSession
from gemfleet.launcher.runs.registry import registry_of
from gemfleet.train.errors import UserError

RUN = "run-1"
STEP = {"kind": "step", "step": 3, "total_steps": 8, "loss": 1.25}
REASON = "a <reason> with hf_abcdefghijklmnopqrstuvwxyz"


class Webhook(ThreadingHTTPServer):
    """Keeps what it is told. answers: the statuses that it gives in turn, then 200"""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[int] = []
        self.got: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/services/T0SECRET"

    def wait(self, count: int = 1, seconds: float = 60.0) -> list[dict[str, Any]]:
        deadline = time.monotonic() + seconds
        while len(self.got) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(self.got) == count
        return [json.loads(body) for _, _, body in self.got]


class _Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        status = self.server.answers.pop(0) if self.server.answers else 200
        self.send_response(status)
        self.send_header("location", self.server.url)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    server = Webhook()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def made(tmp_path: Path, webhook: Webhook) -> Callable[..., RunRegistry]:
    """Makes a run with this section `notify`, driven by a process; by default by this one."""

    def make(driver: int | None = None, **section: Any) -> RunRegistry:
        registry = registry_of(tmp_path)
        config = yaml.safe_dump({"notify": [{"url": webhook.url, **section}]})
        registry.create_run(RUN, "run", config, driver or os.getpid())
        registry.add_metrics(RUN, [STEP])
        return registry

    return make


def lost(registry: RunRegistry) -> list[str]:
    return [event["message"] for event in registry.events(RUN) if event["kind"] == "notice_lost"]


def test_whoever_ends_a_run_tells_its_webhook(made: Callable[..., RunRegistry], webhook: Webhook) -> None:
    registry = made()
    with first_tries():
        began = time.monotonic()
        registry.transition(RUN, RunState.FAILED, REASON)
        assert time.monotonic() - began < 1.0
    (facts,) = webhook.wait()
    assert facts["type"] == "run.failed"
    assert facts["data"]["reason"] == "a <reason> with [hidden]"
    assert (facts["data"]["id"], facts["data"]["step"], facts["data"]["loss"]) == (RUN, 3, 1.25)
    assert "webhook-signature" not in webhook.got[0][1]
    assert lost(registry) == []


@pytest.mark.slow
def test_a_run_whose_driver_was_killed_is_told_by_the_process_that_finds_out(
    made: Callable[..., RunRegistry], webhook: Webhook
) -> None:
    with subprocess.Popen(["sleep", "60"]) as driver:
        registry = made(driver.pid, on=["interrupted"], format="slack")
        driver.kill()
    assert registry.mark_interrupted() == [RUN]
    assert registry.mark_interrupted() == []
    assert webhook.wait() == [{"text": f"{RUN} interrupted: the driver process is gone (step 3 of 8, loss 1.2500)"}]


def test_a_message_is_signed_with_its_time_and_the_same_over_all_tries(
    made: Callable[..., RunRegistry], webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the rules of https://www.standardwebhooks.com: HMAC-SHA256 of id, time and body."""
    key = bytes(range(32))
    monkeypatch.setenv("GEMFLEET_NOTIFY_KEY", f"whsec_{base64.b64encode(key).decode()}")
    registry = made(on=["succeeded"], secret="GEMFLEET_NOTIFY_KEY")
    webhook.answers = [503, 429]
    send(registry, RUN, 0, "stalled", pauses=(0.0, 0.0, 0.0))
    webhook.wait(3)
    assert len({(sent["webhook-id"], body) for _, sent, body in webhook.got}) == 1
    for _, sent, body in webhook.got:
        assert abs(int(sent["webhook-timestamp"]) - time.time()) < 60
        signed = f"{sent['webhook-id']}.{sent['webhook-timestamp']}.".encode() + body
        digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert sent["webhook-signature"] == f"v1,{digest}"
    assert lost(registry) == []
    monkeypatch.delenv("GEMFLEET_NOTIFY_KEY")
    send(registry, RUN, 0, "succeeded")
    assert len(webhook.got) == 3  # never unsigned
    assert "$GEMFLEET_NOTIFY_KEY, which signs the message, is not set" in lost(registry)[0]
    with pytest.raises(UserError, match=r"notify\[0\].secret: \$GEMFLEET_NOTIFY_KEY, which signs the messages"):
        check_notices(notices_of(registry.get_run(RUN).config))
    monkeypatch.setenv("GEMFLEET_NOTIFY_KEY", "whsec_abc")
    send(registry, RUN, 0, "succeeded", pauses=(0.0,))
    assert "the value of $GEMFLEET_NOTIFY_KEY is not base64 after whsec_ (tries: 1)" in lost(registry)[1]


@pytest.mark.parametrize(("answer", "tries"), [(500, 3), (404, 1), (302, 1)])
def test_what_a_webhook_was_not_told_is_one_event_without_its_address(
    answer: int, tries: int, made: Callable[..., RunRegistry], webhook: Webhook
) -> None:
    """A redirection, which could lead anywhere, is not followed."""
    registry = made()
    webhook.answers = [answer] * 5
    send(registry, RUN, 0, "failed", pauses=(0.0, 0.0))
    assert len(webhook.got) == tries
    place = webhook.url.partition("/services")[0]
    assert lost(registry) == [f"{place} was not told that the run failed: it answered {answer} (tries: {tries})"]
    assert "T0SECRET" not in str(registry.events(RUN))


def test_an_answer_that_never_ends_is_an_event(
    made: Callable[..., RunRegistry], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each byte comes in time, so the request itself does not fail."""
    ended = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-A: ")
            while not ended.wait(0.2):
                connection.sendall(b"x")

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    registry = made(url=f"http://127.0.0.1:{server.getsockname()[1]}/T0SECRET")
    monkeypatch.setattr(sending, "MOST_SECONDS", 1)
    monkeypatch.setattr(sending, "keep_private", lambda: None)  # the umask stays
    before = signal.getsignal(signal.SIGALRM)
    try:
        sending.main(str(tmp_path), RUN, "0", "failed")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    ended.set()
    thread.join()
    server.close()
    assert lost(registry)[0].endswith("was not told that the run failed: its answer did not end in 1 s")


def test_ranks_that_hang_together_are_one_stall(
    made: Callable[..., RunRegistry], webhook: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the driver does with each look at the run, beside the recorder that the ranks tell."""
    monkeypatch.setenv("GEMFLEET_HOME", str(tmp_path))
    run: Any = SimpleNamespace(registry=made(on=["stalled"]), id=RUN, _stalled_at=0.0)
    recorder = RunRecorder(str(tmp_path), RUN)
    with first_tries():
        for rank in (0, 1):
            RunSession.tell_of_stall(run, recorder.snapshot()["hangs"])
            recorder.save_stacks(rank, 1, "step", 900.0, "stacks")
            RunSession.tell_of_stall(run, recorder.snapshot()["hangs"])
    (facts,) = webhook.wait()
    assert (facts["type"], facts["data"]["state"]) == ("run.stalled", "queued")


def test_a_webhook_is_not_told_of_what_it_did_not_ask_for(made: Callable[..., RunRegistry], webhook: Webhook) -> None:
    registry = made(on=["failed"])
    with first_tries():
        registry.transition(RUN, RunState.SUCCEEDED)
    assert webhook.got == []
