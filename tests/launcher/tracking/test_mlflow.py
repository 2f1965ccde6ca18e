"""MLflow keeps a run: read back by MLflow's own client, from a folder and from a real server."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.cli import app
from gemfleet.launcher.config.reports import TrackerConfig
from gemfleet.launcher.tracking.mlflow_tracker import ENVIRONMENT
from gemfleet.launcher.tracking.processes import tracked
from support.followed_run import RUN, FollowedRun
from support.servers.mlflow_server import mlflow_server
from typer.testing import CliRunner

pytest.importorskip("mlflow", reason="needs the mlflow extra")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FollowedRun:
    for name, value in ENVIRONMENT.items():  # the tracker sets them otherwise
        monkeypatch.setenv(name, value)
    return FollowedRun(tmp_path / "home")


def in_folder(tmp_path: Path) -> TrackerConfig:
    return TrackerConfig(type="mlflow", uri=f"file://{tmp_path}/mlflow", experiment="an experiment")


def client_of(config: TrackerConfig) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(config.uri)


def check_whole(client: Any, run: FollowedRun, tmp_path: Path) -> None:
    """All of steps 1 to 30 and of the result, under TensorBoard's names."""
    state = run.tracker
    assert (state.done, state.problem, state.sent) == (True, "", {"step": 30, "eval": 30})
    found = client.get_run(state.id)
    assert (found.info.status, found.data.tags["gemfleet.state"]) == ("FINISHED", "succeeded")
    assert client.get_experiment(found.info.experiment_id).name == "an experiment"
    losses = client.get_metric_history(state.id, "train/loss")
    assert [(point.step, point.timestamp) for point in losses] == [(n, 1000_000 + 1000 * n) for n in range(1, 31)]
    assert found.data.metrics["train/memory_bytes/rank-1"] == 60
    assert found.data.metrics["eval/loss"] == 0.5
    assert found.data.metrics["eval/losses/a set _1_"] == 0.25
    assert found.data.params["train.lora.r"] == "8"
    assert found.data.params["train.lora.target_modules"] == '["q_proj", "v_proj"]'
    assert found.data.params["train.data.train.0.weight"] == "2.0"
    assert not [value for value in found.data.params.values() if "hunter2" in value or "hooks.example" in value]
    assert {file.path for file in client.list_artifacts(state.id)} == {"README.md", "adapter_model.safetensors"}
    fetched = Path(client.download_artifacts(state.id, "adapter_model.safetensors", str(tmp_path)))
    assert fetched.read_bytes() == b"the adapter"


def test_a_run_that_was_killed_and_resumed_is_one_run_of_mlflow(run: FollowedRun, tmp_path: Path) -> None:
    """Its driver died after step 20; it goes on from step 15. Each step is there once, and the curve is whole."""
    config = in_folder(tmp_path)
    with run.followed(config), subprocess.Popen(["sleep", "60"]) as driver:
        run.registry.set_driver(RUN, driver.pid)
        run.train(range(1, 21))
        driver.kill()
    first = run.tracker.id
    assert run.registry.get_run(RUN).state == RunState.INTERRUPTED
    assert client_of(config).get_run(first).info.status == "KILLED"
    run.registry.reopen(RUN, "", os.getpid())
    settled = run.folder / "settled.yaml"
    settled.write_text(settled.read_text().replace("r: 8", "r: 8, alpha: 1.0"))  # MLflow takes no other value of `r`
    with run.followed(config):
        run.train(range(16, 31))
        run.publish()
    assert run.tracker.id == first
    check_whole(client_of(config), run, tmp_path)
    assert client_of(config).get_run(first).data.params["train.lora.alpha"] == "1.0"
    assert run.told() == [f"mlflow ({config.uri}) follows the run"]


def test_another_value_on_resuming_is_a_tag(run: FollowedRun, tmp_path: Path) -> None:
    config = in_folder(tmp_path)
    for rank in (8, 16):
        with run.followed(config):
            settled = run.folder / "settled.yaml"
            settled.write_text(settled.read_text().replace("r: 8", f"r: {rank}"))
            run.registry.transition(RUN, RunState.FAILED, "a reason")
        run.registry.reopen(RUN, "", os.getpid())
    found = client_of(config).get_run(run.tracker.id)
    assert (found.data.params["train.lora.r"], found.data.tags["resumed.train.lora.r"]) == ("8", "16")
    assert (found.info.status, found.data.tags["gemfleet.state"]) == ("FAILED", "failed: a reason")


@pytest.mark.slow
def test_track_sends_a_run_to_a_tracker_that_did_not_answer(
    run: FollowedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMFLEET_HOME", str(tmp_path / "home"))
    config = in_folder(tmp_path)
    (tmp_path / "mlflow").touch()  # where the folder is to be
    with tracked(run.registry, RUN, [config], print):
        run.train(range(1, 31))
        run.publish()
    assert run.told()[-1].endswith("`gemfleet track run-1` sends it again")
    (tmp_path / "mlflow").unlink()
    (run.folder / "config.resolved.yaml").write_text("train: {model: demo, data: {train: demo}}")
    asked = f"trackers=[{config.model_dump_json()}]"
    result = CliRunner().invoke(app, ["track", RUN, "--set", asked], catch_exceptions=False)
    assert result.output.endswith(f"mlflow ({config.uri}) has all of {RUN}\n")
    assert result.exit_code == 0
    check_whole(client_of(config), run, tmp_path)


@pytest.mark.slow
def test_a_real_server_has_all_of_a_run(run: FollowedRun, tmp_path: Path) -> None:
    with mlflow_server(tmp_path) as address:
        config = TrackerConfig(type="mlflow", uri=address, experiment="an experiment")
        with tracked(run.registry, RUN, [config], print):
            run.train(range(1, 31))
            run.publish()
        check_whole(client_of(config), run, tmp_path)
        link = run.tracker.link
        assert link is not None
        assert link.startswith(f"{address}/#/experiments/")
        assert run.told() == [f"mlflow ({address}) follows the run: {link}"]
