"""The API, the dashboard and a real run of two workers together: watched, its API killed, stopped and downloaded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from gemfleet.cluster.registry.run_registry import RunRegistry
from support.servers.browser import complaints, emulate, open_browser, points, screenshot, text_of, wait_for
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.slow
WAIT_SECONDS = 150.0


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    import ray

    context = ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=200 * 2**20)
    yield str(context.address_info["address"])
    ray.shutdown()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    save_tiny_gemma3(folder / "model")
    tiny_tokenizer(folder / "model")
    rows = [{"prompt": f"question {i} what ", "completion": f"answer {i % 7} cat"} for i in range(64)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    yield from open_browser(tmp_path / "downloads")


def start(work: Path, home: Path, address: str, **train: Any) -> subprocess.Popen[str]:
    config = {
        "name": "tiny",
        "train": {
            "model": "./model",
            "data": {"train": "rows.jsonl", "max_length": 64},
            "batch": {"global": 4},
            "epochs": 1000.0,
            "checkpoint": {"every": 50},
            **train,
        },
        "cluster": {"address": address, "workers": 2, "keep_checkpoints": 3},
        "api": {"port": 0},
    }
    (work / "run.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "gemfleet.launcher.cli", "train", "run.yaml"]
    environment = {**os.environ, "GEMFLEET_HOME": str(home), "OMP_NUM_THREADS": "1"}
    output = (work / "output.txt").open("w")
    return subprocess.Popen(command, cwd=work, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)


def dashboard_of(work: Path) -> str:
    """The address that the command printed."""
    lines = (work / "output.txt").read_text().splitlines()
    return next((line.split(" ", 1)[1] for line in lines if line.startswith("dashboard: http")), "")


def test_a_run_is_watched_survives_its_api_is_stopped_and_downloaded(  # noqa: PLR0915 (one run, from start to end)
    work: Path, tmp_path: Path, ray_address: str, browser: Any
) -> None:
    from gemfleet.launcher.api.client import ApiClient
    from gemfleet.launcher.api.client_messages import Message

    home = tmp_path / "home"
    process = start(work, home, ray_address)
    try:
        page = wait_for(lambda: dashboard_of(work) or (process.poll() is not None and "ended"), WAIT_SECONDS)
        assert page != "ended", (work / "output.txt").read_text()
        url, run_id = page.split("/#/runs/")
        browser.get(page)
        wait_for(lambda: points(browser) >= 5, WAIT_SECONDS)
        browser.execute_script("window.sameDocument = true")

        told: list[Message] = []
        client = ApiClient(url)
        follower = threading.Thread(target=lambda: told.extend(client.follow(run_id, metrics=True)), daemon=True)
        follower.start()
        registry = RunRegistry(home / "gemfleet.db")
        kill_api(home, client)
        before = steps_of(registry, run_id)
        wait_for(lambda: steps_of(registry, run_id) > before + 20, WAIT_SECONDS)
        wait_for(lambda: points(browser) > before, WAIT_SECONDS)
        for name, scheme, width in (("light", "light", 1280), ("dark", "dark", 1280), ("narrow", "light", 390)):
            emulate(browser, scheme, width, 900)
            screenshot(browser, f"dashboard-{name}")
        emulate(browser)

        browser.find_element("id", "stop").click()
        browser.find_element("css selector", "#confirm-dialog button[value=yes]").click()
        wait_for(lambda: text_of(browser, ".top .state") == "stopped", WAIT_SECONDS)
        assert browser.execute_script("return window.sameDocument") is True
        assert process.wait(60) == 0, (work / "output.txt").read_text()
        follower.join(30)
        assert not follower.is_alive()
        check_nothing_lost_or_repeated(registry, run_id, told)
        newest = registry.checkpoints(run_id)[-1]["step"]
        assert newest == steps_of(registry, run_id)
        check_adapter(client.download(run_id, newest, tmp_path / "checkpoint.tar"), work / "model", newest)
        assert other_complaints(browser) == []
    finally:
        process.kill()
    text = (work / "output.txt").read_text()
    assert "Token authentication is enabled" not in text
    assert "Setting accelerator to CPU" not in text


def other_complaints(browser: Any) -> list[str]:
    """The browser's complaints without those that an API which is killed causes."""
    lost = ("ERR_CONNECTION", "ERR_INCOMPLETE")
    return [line for line in complaints(browser) if not any(error in line for error in lost)]


@pytest.mark.parametrize(
    ("train", "end"),
    [
        pytest.param({"epochs": 4.0}, "succeeded", marks=pytest.mark.long),
        ({"optim": {"learning_rate": 1e30}}, "failed"),
    ],
)
def test_the_end_is_seen_of_a_run_whose_cluster_ends_with_it(
    work: Path, tmp_path: Path, browser: Any, train: dict[str, Any], end: str
) -> None:
    process = start(work, tmp_path / "home", "local", **train)
    try:
        page = wait_for(lambda: dashboard_of(work) or (process.poll() is not None and "ended"), WAIT_SECONDS)
        assert page != "ended", (work / "output.txt").read_text()
        browser.get(page)
        assert process.wait(WAIT_SECONDS) == (0 if end == "succeeded" else 1), (work / "output.txt").read_text()
        wait_for(lambda: text_of(browser, ".top .state") == end)
        if end == "succeeded":
            facts = text_of(browser, ".facts").split("\n")
            assert facts[facts.index("Step") + 1] == "60 of 60"
            assert facts[facts.index("Last checkpoint") + 1] == "step 60"
        else:
            assert "loss" in text_of(browser, ".problem")
    finally:
        process.kill()


def kill_api(home: Path, client: Any) -> None:
    """SIGKILL its process; returns once another one answers at the same address."""
    import ray
    from gemfleet.cluster.errors import ClusterError
    from gemfleet.launcher.api.actor import actor_name

    actor = ray.get_actor(actor_name(home), namespace="gemfleet")
    old = ray.get(actor.facts.remote()).pid
    os.kill(old, signal.SIGKILL)

    def answers() -> bool:
        try:
            return client.health().status == "ok" and bool(ray.get(actor.facts.remote()).pid != old)
        except (ClusterError, ray.exceptions.RayError):
            return False

    wait_for(answers, 60.0)


def steps_of(registry: RunRegistry, run_id: str) -> int:
    newest = registry.latest_metrics(run_id, "step")
    return newest["step"] if newest else 0


def check_nothing_lost_or_repeated(registry: RunRegistry, run_id: str, told: list[Any]) -> None:
    events = [int(message.data["id"]) for message in told if message.kind == "event"]
    assert events == [event["seq"] for event in registry.events(run_id)]
    steps = [message.data["step"] for message in told if message.kind == "metric" and message.data["kind"] == "step"]
    assert steps == list(range(1, steps_of(registry, run_id) + 1))


def check_adapter(archive: Path, model_folder: Path, step: int) -> None:
    """peft loads the downloaded adapter on the base model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with tarfile.open(archive) as content:
        content.extractall(archive.parent / "extracted", filter="data")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_folder), archive.parent / "extracted" / f"checkpoint-{step}"
    )
    assert any(parameter.abs().sum() > 0 for name, parameter in model.named_parameters() if "lora_B" in name)


@pytest.mark.long
def test_a_submitted_run_outlives_an_older_api_that_is_replaced_and_is_resumed(
    work: Path, tmp_path: Path, ray_address: str
) -> None:
    import ray
    from gemfleet.launcher.api.actor import api_facts, start_api
    from gemfleet.launcher.api.client import ApiClient
    from gemfleet.launcher.config.schema import ApiConfig

    home, config = tmp_path / "home", ApiConfig(port=0, data_roots=(str(work),))
    actor = start_api(home, config)
    first = api_facts(home, config, actor)
    with ApiClient(first.url) as client:
        assert client.cluster().connected
        run = client.submit(
            {
                "name": "sent",
                "train": {
                    "model": str(work / "model"),
                    "data": {"train": str(work / "rows.jsonl"), "max_length": 64},
                    "batch": {"global": 4},
                    "epochs": 1000.0,
                },
                "cluster": {"workers": 1},
            }
        )
        registry = RunRegistry(home / "gemfleet.db")
        try:
            wait_for(lambda: steps_of(registry, run.id) > 2 or registry.get_run(run.id).state.is_terminal, WAIT_SECONDS)
            assert api_facts(home, config, actor).pid == first.pid
            second = api_facts(home, config, actor, ours="99.0")
            assert second.url == first.url
            assert second.pid != first.pid
            before = steps_of(registry, run.id)
            wait_for(lambda: steps_of(registry, run.id) > before + 5, WAIT_SECONDS)
        finally:
            client.stop(run.id)
            wait_for(lambda: registry.get_run(run.id).state.is_terminal, WAIT_SECONDS)
        output = home / "submitted" / run.id / "output.log"
        assert registry.get_run(run.id).state == "stopped", output.read_text()
        stopped_at = steps_of(registry, run.id)
        assert client.resume(run.id).status == "queued"
        try:
            wait_for(lambda: steps_of(registry, run.id) > stopped_at + 2 or ended(registry, run.id), WAIT_SECONDS)
        finally:
            client.stop(run.id)
            wait_for(lambda: ended(registry, run.id), WAIT_SECONDS)
    assert registry.get_run(run.id).state == "stopped", output.read_text()
    starts = [event["message"] for event in registry.events(run.id) if event["kind"] == "resume"]
    assert starts == ["training starts at step 0", f"training goes on from checkpoint-{stopped_at}"]
    steps = [record["step"] for record in registry.metrics(run.id, kind="step")]
    assert steps == list(range(1, steps[-1] + 1))
    assert "Setting accelerator to CPU" not in output.read_text()
    assert ray.is_initialized()


def ended(registry: RunRegistry, run_id: str) -> bool:
    return registry.get_run(run_id).state.is_terminal
