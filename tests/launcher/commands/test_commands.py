"""The commands that list, over a real registry and real log files, through the real command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.launcher.cli import app, main
from gemfleet.launcher.commands.options import parsed_tags
from gemfleet.launcher.runs.registry import registry_of
from gemfleet.launcher.tracking.state import TrackerState
from gemfleet.train.errors import UserError
from typer.testing import CliRunner

TRACKER_PAGE = "http://127.0.0.1:5000/#/experiments/1/runs/a1"
STEP = {
    "kind": "step",
    "step": 3,
    "total_steps": 8,
    "epoch": 0.4,
    "epochs": 1.0,
    "loss": 1.25,
    "tokens_per_second": 9.0,
}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRegistry:
    """Two runs: `alpha-1` succeeded with a checkpoint and logs, `alpha-2` is training in this very process."""
    monkeypatch.setenv("GEMFLEET_HOME", str(tmp_path))
    registry = registry_of(tmp_path)
    registry.create_run("alpha-1", "alpha", "{}", os.getpid())
    registry.add_metrics("alpha-1", [STEP, {"kind": "eval", "step": 3, "eval_loss": 1.5}])
    registry.add_checkpoint("alpha-1", 3, str(tmp_path / "runs/alpha-1/checkpoints/checkpoint-3"), 2048, 1)
    registry.transition("alpha-1", RunState.SUCCEEDED)
    registry.create_run("alpha-2", "alpha", "{}", os.getpid())
    registry.transition("alpha-2", RunState.TRAINING)
    logs = tmp_path / "runs/alpha-1/logs"
    logs.mkdir(parents=True)
    TrackerState("mlflow", "http://127.0.0.1:5000", "a1", TRACKER_PAGE).write(tmp_path / "runs/alpha-1")
    (logs / "driver.log").write_text("one\ntwo\nthree\n")
    (logs / "rank-1.log").write_text("hello\nunfinis")
    return registry


def output_of(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def json_of(*arguments: str) -> Any:
    return json.loads(output_of(*arguments, "--json"))


@pytest.mark.usefixtures("registry")
def test_runs_lists_newest_first() -> None:
    assert [run["id"] for run in json_of("runs")] == ["alpha-2", "alpha-1"]
    table = output_of("runs")
    assert "succeeded" in table
    assert "3/8" in table
    assert [run["id"] for run in json_of("runs", "--limit", "1")] == ["alpha-2"]


@pytest.mark.usefixtures("registry")
def test_show_knows_a_run_by_the_beginning_of_its_id_and_by_latest() -> None:
    assert json_of("show", "latest")["id"] == "alpha-2"
    facts = json_of("show", "alpha-1")
    assert facts["newest_eval"]["eval_loss"] == 1.5
    assert facts["events"][0]["message"] == "queued"
    text = output_of("show", "alpha-1")
    assert "3/8, loss 1.2500" in text
    assert "checkpoint-3" in text
    assert TRACKER_PAGE in text
    assert facts["trackers"][0]["link"] == TRACKER_PAGE


@pytest.mark.usefixtures("registry")
def test_tags_find_runs_and_archived_ones_are_listed_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert output_of("tag", "alpha-2", "team=search", "why=a=b") == "alpha-2: team=search, why=a=b\n"
    assert json_of("tag", "alpha-2", "why=") == {"run": "alpha-2", "tags": {"team": "search"}}
    assert [run["id"] for run in json_of("runs", "--tag", "team=search")] == ["alpha-2"]
    assert json_of("runs", "--tag", "team=other") == json_of("runs", "--tag", "why") == []
    assert "team=search" in output_of("runs")
    assert "team=search" in output_of("show", "alpha-2")
    output_of("archive", "alpha-1")
    assert [run["id"] for run in json_of("runs")] == ["alpha-2"]
    assert [run["id"] for run in json_of("runs", "--archived")] == ["alpha-1"]
    output_of("archive", "alpha-1", "--undo")
    assert json_of("show", "alpha-1")["archived"] is False
    with pytest.raises(UserError, match="at most 32"):
        parsed_tags([f"key{number}=x" for number in range(33)])
    assert exit_of("archive", "alpha-2") == exit_of("tag", "alpha-2", "team") == exit_of("tag", "alpha-2", "a b=c") == 2
    assert (
        exit_of("train", "x.yaml", "--tag", "a=b", "--resume", "alpha-2")
        == exit_of("train", "x.yaml", "--tag", "a=")
        == 2
    )
    assert "gemfleet tag alpha-2 a=b" in capsys.readouterr().err


@pytest.mark.usefixtures("registry")
def test_checkpoints_give_the_folder() -> None:
    (checkpoint,) = json_of("checkpoints", "alpha-1")
    assert checkpoint["path"].endswith("checkpoint-3")
    assert checkpoint["path"] in output_of("checkpoints", "alpha-1")
    assert json_of("checkpoints", "alpha-2") == []


@pytest.mark.usefixtures("registry")
def test_logs_show_whole_lines_of_all_or_of_one_rank() -> None:
    lines = output_of("logs", "alpha-1", "--tail", "2").splitlines()
    assert [line.split() for line in lines] == [["driver", "two"], ["driver", "three"], ["rank-1", "hello"]]
    assert output_of("logs", "alpha-1", "--rank", "1", "--follow").split() == ["rank-1", "hello"]


def test_stop_sets_the_flag_and_refuses_an_ended_run(registry: RunRegistry) -> None:
    output_of("stop", "alpha-2")
    assert registry.stop_requested("alpha-2")
    assert exit_of("stop", "alpha-1") == 2


@pytest.mark.usefixtures("registry")
def test_a_run_that_is_not_there_or_not_the_only_one_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("show", "beta") == 2
    assert exit_of("show", "alpha") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "error: there is no run 'beta'; `gemfleet runs` lists them",
        "error: 2 runs begin with 'alpha'; `gemfleet runs` lists them",
    ]


@pytest.mark.usefixtures("registry")
def test_found_micro_batches_are_listed_and_forgotten() -> None:
    from gemfleet.train.batch_finder.cache import BatchCache, CachedBatch, batch_cache_file

    BatchCache(batch_cache_file()).put("k1", CachedBatch("ddp, selective", 8, 1234.5, 3 * 2**30))
    assert json_of("batch-cache", "list")[0]["rows"] == 8
    table = output_of("batch-cache", "list")
    assert "ddp, selective" in table
    assert "3.0 GiB" in table
    assert json_of("batch-cache", "clear") == {"removed": 1}
    assert json_of("batch-cache", "list") == []


def test_version_names_what_it_stands_on() -> None:
    assert {"gemfleet", "ray", "torch", "transformers", "peft"} <= set(json_of("version"))


def exit_of(*arguments: str) -> int:
    """The exit code of the console script's own entry point."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["gemfleet", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


@pytest.mark.usefixtures("registry")
def test_watch_and_events_tell_of_a_run() -> None:
    text = output_of("watch", "alpha-1")
    assert "3 of 8" in text
    assert "succeeded" in text
    assert [line.split()[-1] for line in output_of("events", "alpha-1", "--follow").splitlines()][-1] == "succeeded"
    first = json.loads(output_of("events", "alpha-1", "--json").splitlines()[0])
    assert (first["object"], first["message"]) == ("run.event", "queued")


def test_resume_latest_is_the_newest_run_of_that_name(registry: RunRegistry) -> None:
    from gemfleet.cluster.errors import RunConflict, UnknownRun
    from gemfleet.launcher.commands.train import run_to_resume

    for name in ("latest", "alpha-2"):
        with pytest.raises(RunConflict, match="alpha-2 is training; stop it first"):
            run_to_resume(name, "alpha")
    registry.transition("alpha-2", RunState.STOPPED)
    assert run_to_resume("latest", "alpha") == "alpha-2"
    assert run_to_resume("alpha-1", "another") == "alpha-1"
    with pytest.raises(UnknownRun, match="no run named 'beta' yet"):
        run_to_resume("latest", "beta")


def test_a_job_resumes_with_the_same_words() -> None:
    from gemfleet.launcher.submit.job import entrypoint

    assert entrypoint("run.yaml", ["name=x"], "latest") == "gemfleet train run.yaml --set name=x --resume latest"
    assert entrypoint("run.yaml", []) == "gemfleet train run.yaml"


def test_the_figures_of_a_run_that_ended_are_the_runs(registry: RunRegistry) -> None:
    """Its last step had one example: neither its loss nor its speed is shown as the run's."""
    registry.create_run("beta-1", "beta", "{}", os.getpid())
    values = [(2.0, 100.0), (1.0, 100.0), (9.0, 3.0)]
    steps = [
        {**STEP, "step": n, "total_steps": 3, "loss": loss, "tokens_per_second": rate, "step_seconds": 1.0}
        for n, (loss, rate) in enumerate(values, 1)
    ]
    registry.add_metrics("beta-1", steps)
    assert " 9.000 " in output_of("runs")
    assert "loss 9.0000, 3 tokens/s" in output_of("show", "beta-1")
    registry.transition("beta-1", RunState.SUCCEEDED)
    assert " 4.000 " in output_of("runs")
    assert "loss 4.0000, 100 tokens/s (mean and median of all steps)" in output_of("show", "beta-1")
    watched = [line.split() for line in output_of("watch", "beta-1").splitlines()]
    assert ["loss", "4.0000"] in watched
    assert ["tokens/s", "100"] in watched
    assert json_of("runs")[0]["figures"]["loss"] == 4.0
    assert json_of("show", "beta-1")["newest_step"]["loss"] == 9.0


def test_resume_of_a_run_that_succeeded_leaves_it_alone(registry: RunRegistry, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "alpha-1"
    (folder / "output").mkdir()
    resolved = "name: alpha\ntrain: {model: demo, data: {train: demo}}\ncluster: {address: local}\n"
    (folder / "config.resolved.yaml").write_text(resolved)
    (tmp_path / "run.yaml").write_text(resolved.replace("local", "auto"))
    for arguments in (
        ("resume", "alpha-1"),
        ("resume", "alpha-1", "--dry-run"),
        ("resume", "alpha-1", "--set", "cluster.workers=2"),
        ("train", str(tmp_path / "run.yaml"), "--resume", "alpha-1"),
    ):
        text = output_of(*arguments)
        assert "alpha-1 has succeeded after 3 of 8 steps, so nothing is left to do" in text
        assert registry.get_run("alpha-1").state is RunState.SUCCEEDED
    more = output_of("resume", "alpha-1", "--dry-run", "--set", "train.epochs=3")
    assert "would go on from step 0" in more
    answer = json.loads(output_of("resume", "alpha-1", "--json"))
    assert (answer["state"], answer["output"]) == ("succeeded", None)
    assert "nothing is left to do" in answer["reason"]
