"""The typed client against a live server."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from gemfleet.cluster.errors import ClusterError
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.api.client import ApiClient, ApiProblem
from gemfleet.launcher.api.client_messages import parse_messages
from support.servers.api_live import Live, step_record


def test_it_reads_everything_typed(live: Live, tmp_path: Path) -> None:
    with ApiClient(live.url) as client:
        assert client.health().status == "ok"
        assert [run.id for run in client.all_runs()] == ["alpha-4", "alpha-3", "alpha-2", "alpha-1"]
        assert client.run("alpha-2").status is RunState.TRAINING
        assert [record.step for record in client.metrics("alpha-2")] == [1, 2, 3]
        assert next(client.events("alpha-1")).message == "queued"
        assert client.logs("alpha-1", rank=1)[0].line == "hello"
        assert client.config("alpha-1").config["name"] == "alpha"
        assert [checkpoint.step for checkpoint in client.checkpoints("alpha-1")] == [8, 4]
        archive = client.download("alpha-1", 8, tmp_path / "c.tar")
        assert archive.stat().st_size > 3000
        assert client.cluster().head.cpu_utilisation >= 0
        assert client.stop("alpha-2").stop_requested
        assert client.submit({"train": {"model": "demo", "data": {"train": "demo"}}}).status is RunState.QUEUED


def test_it_says_what_the_api_refused(live: Live) -> None:
    with ApiClient(live.url) as client:
        with pytest.raises(ApiProblem, match="there is no run 'beta'"):
            client.run("beta")
        with pytest.raises(ApiProblem, match=r"train\.lora\.r: found 0"):
            client.submit({"train": {"model": "demo", "data": {"train": "demo"}, "lora": {"r": 0}}})
    with ApiClient("http://127.0.0.1:1") as client, pytest.raises(ClusterError, match="nobody answers"):
        client.health()


def test_it_follows_to_the_end(live: Live) -> None:
    def write() -> None:
        for step in range(4, 9):
            live.registry.add_metrics("alpha-2", [step_record(step)])
        live.registry.transition("alpha-2", RunState.SUCCEEDED)

    writer = threading.Timer(0.3, write)
    writer.start()
    with ApiClient(live.url) as client:
        told = list(client.follow("alpha-2", metrics=True))
    writer.join()
    assert [message.data["step"] for message in told if message.kind == "metric"] == list(range(1, 9))
    assert told[-1].data["message"] == "succeeded"


def test_a_message_that_broke_off_is_none() -> None:
    lines = [
        "retry: 1000",
        "",
        ": still here",
        "",
        "id: 1",
        "event: event",
        f"data: {json.dumps({'a': 1})}",
        "",
        "id: 2",
    ]
    assert [(message.id, message.data) for message in parse_messages(iter(lines))] == [("1", {"a": 1})]
