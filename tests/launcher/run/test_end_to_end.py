"""The whole way on a local Ray cluster: `gemfleet train` with two ranks, and stopped."""

from __future__ import annotations

import json
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.launcher.data_view.view import DataView
from gemfleet.launcher.rank.ahead import HOOK
from gemfleet.launcher.tracking.state import tracker_states
from support.tiny_run import (
    ends,
    gemfleet,
    history,
    local_ray,
    make_workplace,
    start,
    states,
    trained_steps,
    wait_for_step,
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """One cluster with four logical CPUs for all tests of this file."""
    with local_ray() as address:
        yield address


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.mark.slow
def test_train_brings_everything_home(workplace: Path, home: Path, ray_address: str) -> None:
    tracked = f"trackers=[{{type: mlflow, uri: 'file://{home}/mlflow'}}]"
    overrides = ("output.formats=[merged]", *((tracked,) if find_spec("mlflow") else ()))
    trace = home.parent / "trace.json"
    output = ends(start(workplace, home, ray_address, overrides=overrides, options=("--trace", str(trace))))
    check_trace(trace)
    check_reserve_has_ended()
    registry = RunRegistry(home / "gemfleet.db")
    (run,) = registry.list_runs()
    folder = home / "runs" / run.id
    assert f"adapter: {folder / 'output'}" in output
    assert states(registry, run.id) == [
        *("queued", "preflight", "staging", "preparing_data", "training", "publishing", "succeeded")
    ]
    steps = [entry["step"] for entry in history(folder / "output") if "loss" in entry]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) == len(registry.metrics(run.id, kind="step")) == 15
    assert all(0 < used < 2**36 for used in registry.metrics(run.id, kind="step")[-1]["memory_bytes"])
    assert len(registry.metrics(run.id, kind="step")[-1]["memory_bytes"]) == 2
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "training_config.json"):
        assert (folder / "output" / name).is_file()
    manifests = sorted(path.parent.name for path in folder.glob("checkpoints/*/manifest.json"))
    assert manifests == ["checkpoint-12", "checkpoint-15", "checkpoint-4", "checkpoint-8"]
    assert [entry["step"] for entry in registry.checkpoints(run.id)] == [4, 8, 12, 15]
    assert len(list(folder.glob("runs/*/events.out.tfevents.*"))) == 1
    assert "rank 1 on" in (folder / "logs" / "rank-1.log").read_text()
    assert [path for path in [home, *home.rglob("*")] if path.lstat().st_mode & 0o077 and not path.is_symlink()] == []
    check_figures(registry, run.id, output)
    check_names(folder / "output", workplace, home)
    check_data(folder)
    check_tracker(folder)
    check_comparison(folder / "output", output)
    again = ends(gemfleet(workplace, home, "resume", "latest"))
    assert f"{run.id} has succeeded after 15 of 15 steps, so nothing is left to do" in again


def check_trace(file: Path) -> None:
    """Every kind of process has told what it did. The ranks' began before the driver had checked its inputs, and had
    imported torch before Ray Train asked for them.
    """
    events = json.loads(file.read_text())["traceEvents"]
    names = {
        event["pid"]: event["args"]["name"].partition(" (")[0] for event in events if event["name"] == "process_name"
    }
    assert {"driver", "recorder", "Ray Train's controller, attempt 1", "rank 0", "rank 1", "run"} <= set(names.values())
    done: dict[str, list[str]] = {}
    begun: dict[tuple[str, str], float] = {}
    for event in events:
        if event["ph"] == "X":
            done.setdefault(names[event["pid"]], []).append(event["name"])
            begun.setdefault((names[event["pid"]], event["name"]), event["ts"])
    assert begun["rank 0", "Python, Ray, imports"] < begun["driver", "joins Ray"]
    assert begun["driver", "imports the launcher"] < begun["driver", "checks its inputs"]
    assert done["rank 0"][1:3] == ["imports", "waits for Ray Train"]
    assert done["rank 0"][-3:] == ["loads the model", "evaluate", "first step"]
    assert "preparing data" in done["driver"]
    assert done["run"][-1] == "succeeded"


def check_reserve_has_ended() -> None:
    """No process that waited for Ray Train outlives its run; the cluster does."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (left := waiting_processes()):
        time.sleep(0.5)
    assert not left


def waiting_processes() -> list[int]:
    """Those of this process's cluster that were started for ranks."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found += [process.pid] if HOOK in process.environ().values() else []
    return found


def check_figures(registry: RunRegistry, run_id: str, output: str) -> None:
    """What the command, the registry and the card say is of all steps; the last has two examples, the others four."""
    steps = registry.metrics(run_id, kind="step")
    loss = statistics.fmean(step["loss"] for step in steps)
    speed = statistics.median(step["tokens_per_second"] for step in steps)
    assert registry.end_figures(run_id)["loss"] == pytest.approx(loss)
    assert registry.end_figures(run_id)["tokens_per_second"] == pytest.approx(speed)
    assert f"training loss {loss:.4f} on average, {speed:,.0f} tokens/s at the median" in output
    assert f"training: 15/15  loss {loss:.3f} on average" in output


def check_tracker(folder: Path) -> None:
    """MLflow has all steps under TensorBoard's names, the settled configuration, the card and the adapter."""
    if not find_spec("mlflow"):
        return
    (state,) = tracker_states(folder)
    assert (state.done, state.sent["step"]) == (True, 15)
    (kept,) = folder.parent.parent.glob(f"mlflow/*/{state.id}")
    losses = [line.split() for line in (kept / "metrics/train/loss").read_text().splitlines()]
    assert [int(step) for _, _, step in losses] == list(range(1, 16))
    assert len((kept / "metrics/train/memory_bytes/rank-1").read_text().splitlines()) == 15
    assert (kept / "params/train.batch.micro").read_text() != "auto"
    assert "status: 3" in (kept / "meta.yaml").read_text()  # finished
    assert {"README.md", "adapter_model.safetensors"} <= {path.name for path in (kept / "artifacts").iterdir()}


def check_data(folder: Path) -> None:
    """What the run keeps of its data, for the API, is what `gemfleet data` counts."""
    view = DataView.model_validate_json((folder / "data.json").read_bytes())
    assert view.epoch is not None
    (rows,) = view.sets
    assert (rows.rows, rows.examples + rows.held_out, view.epoch.steps, view.epoch.ranks) == (64, 64, 15, 2)
    first = view.examples[0]
    assert first.name == f"example 1 of {rows.examples}"
    assert [span.supervised for span in first.spans] == [False, True]
    assert first.spans[1].text.startswith("answer ")
    assert len(view.examples) == 4


def check_comparison(published: Path, output: str) -> None:
    """Adapter and merged model were loaded from their files in an actor, and answered as the loop would have."""
    found = json.loads((published / "comparison.json").read_text())
    assert [(form["form"], form["equal"]) for form in found["forms"]] == [("adapter", 4), ("merged", 4)]
    assert all(0 <= form["difference"] < form["bound"] for form in found["forms"])
    assert (found["prompts"], found["source"], found["dtype"]) == (4, "the evaluation set", "float32")
    assert "compared with the training loop in float32: adapter: logits differ by up to" in output
    assert "the merged model, by transformers: equal answers | 4 of 4 |" in (published / "README.md").read_text()


def check_names(published: Path, workplace: Path, home: Path) -> None:
    """No path and no host of the head is in what was published; the model's folder keeps its name."""
    files = [path for path in published.rglob("*") if path.is_file()]
    words = [str(workplace), str(home)]
    assert [path for path in files for word in words if word.encode() in path.read_bytes()] == []
    assert [path for path in files if socket.gethostname() in str(path.relative_to(published))] == []
    assert list(published.glob("runs/*/events.out.tfevents.*"))
    for name in ("adapter_config.json", "checkpoint-15/adapter_config.json"):
        assert json.loads((published / name).read_text())["base_model_name_or_path"] == "./model"


@pytest.mark.slow
def test_stop_leaves_a_checkpoint(workplace: Path, home: Path, ray_address: str) -> None:
    process = start(workplace, home, ray_address, epochs=400.0)
    registry = wait_for_step(home, 5)
    (run,) = registry.list_runs()
    registry.request_stop(run.id)
    assert "stopped after" in ends(process)
    assert states(registry, run.id)[-2:] == ["publishing", "stopped"]
    last = registry.checkpoints(run.id)[-1]["step"]
    newest = registry.latest_metrics(run.id, "step")
    assert newest is not None
    assert newest["step"] == last < newest["total_steps"]


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_code_130(workplace: Path, home: Path, ray_address: str) -> None:
    process = start(workplace, home, ray_address, epochs=400.0)
    registry = wait_for_step(home, 3)
    process.send_signal(signal.SIGINT)
    assert "stopping: a checkpoint is saved" in ends(process, code=130)
    (run,) = registry.list_runs()
    assert states(registry, run.id)[-1] == "stopped"
    assert registry.checkpoints(run.id)
    assert (home / "runs" / run.id / "output" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run_with_code_1(workplace: Path, home: Path, ray_address: str) -> None:
    output = ends(
        start(workplace, home, ray_address, epochs=20.0, overrides=("train.optim.learning_rate=1e30",)), code=1
    )
    registry = RunRegistry(home / "gemfleet.db")
    (run,) = registry.list_runs()
    assert states(registry, run.id)[-1] == "failed"
    assert "Traceback" not in output
    assert "loss" in output
    assert f"the logs of all ranks are in {home / 'runs' / run.id / 'logs'}" in output


@pytest.mark.long
def test_a_run_that_gets_worse_publishes_its_best_and_another_goes_on_from_it(
    workplace: Path, home: Path, ray_address: str
) -> None:
    rows = [{"prompt": f"question {i} what ", "completion": f"dog {i * 7 % 11} bird bird"} for i in range(16)]
    (workplace / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ("train.data.eval=./other.jsonl", "train.evaluation.every=3", "train.optim.learning_rate=0.02")
    ends(start(workplace, home, ray_address, 3.0, (*overrides, "train.early_stopping={patience: 2}")))
    registry = RunRegistry(home / "gemfleet.db")
    (run,) = registry.list_runs()
    output = home / "runs" / run.id / "output"
    losses = {e["step"]: e["eval_loss"] for e in history(output) if "eval_loss" in e and e["step"]}
    best, last = min(losses, key=lambda step: losses[step]), max(losses)
    assert last == trained_steps(output)[-1] == best + 6 < 48
    assert run.state == "succeeded"
    assert [path.name for path in output.glob("checkpoint-*")] == [f"checkpoint-{best}"]
    chosen = home / "runs" / run.id / "checkpoints" / f"checkpoint-{best}" / "adapter_model.safetensors"
    assert (output / "adapter_model.safetensors").read_bytes() == chosen.read_bytes()
    card, shown = (output / "README.md").read_text(), " ".join(ends(gemfleet(workplace, home, "show", run.id)).split())
    reason = f"step {best} of 48: lowest evaluation loss {losses[best]:.4f} (last: {losses[last]:.4f} at step {last})"
    early = f"stopped early at step {last} of 48: eval_loss did not fall below {losses[best]:.4f}"
    assert all(sentence in text for sentence in (reason, early) for text in (card, shown))
    again = ends(gemfleet(workplace, home, "resume", "latest"))
    assert f"{run.id} has succeeded after {last} of 48 steps, as early stopping said" in again

    ends(start(workplace, home, ray_address, 0.2, (*overrides, "train.adapter=latest", "train.seed=5")))
    newer = registry.list_runs()[0]
    went_on = home / "runs" / newer.id / "output"
    before = next(entry["eval_loss"] for entry in history(went_on) if "eval_loss" in entry)
    assert before == pytest.approx(losses[best], abs=1e-5)
    assert f"| goes on from the adapter of | run {run.id}, step {best} |" in (went_on / "README.md").read_text()
    made = json.loads((went_on / "training_config.json").read_text())["made_from"]
    assert made["adapter"]["name"] == f"run {run.id}, step {best}"
    assert "nothing is left to do" in ends(gemfleet(workplace, home, "resume", newer.id))
    changes = ("--set", "train.adapter=null", "--set", "train.epochs=1")
    refused = ends(gemfleet(workplace, home, "resume", newer.id, *changes), 2)
    assert f"training began with run {run.id}, step {best}, now train.adapter is a new adapter" in refused
