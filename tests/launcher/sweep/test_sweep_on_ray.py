"""A whole sweep on a local cluster of two places: stopped, resumed, killed and gone on with; data is prepared once."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from support.tiny_run import ends, gemfleet, local_ray, make_workplace, trained_steps

pytestmark = [pytest.mark.slow, pytest.mark.long]
GRID = ("--grid", "train.lora.r=4,8,16", "--id", "ranks", "--parallel", "2")


def test_stop_resume_and_a_kill_lose_nothing_and_the_data_is_prepared_once(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs the sweep extra")
    workplace, home = make_workplace(tmp_path / "work"), tmp_path / "home"
    with local_ray(cpus=2) as address:
        write_config(workplace, address)
        sweep = gemfleet(workplace, home, "sweep", "run.yaml", *GRID)
        wait_for(home, lambda registry: step_of(registry, 1) >= 2 and step_of(registry, 2) >= 2)
        stopped = ends(gemfleet(workplace, home, "stop", "ranks", "--wait"))
        assert "sweep ranks is stopped; `gemfleet resume ranks` goes on" in stopped
        assert "to go on: gemfleet resume ranks" in ends(sweep)
        registry = RunRegistry(home / "gemfleet.db")
        saved = [registry.checkpoints(f"ranks-00{number}")[-1]["step"] for number in (1, 2)]
        assert registry.run("ranks-003") is None
        resumed = gemfleet(workplace, home, "resume", "ranks")
        wait_for(home, lambda registry: step_of(registry, 3) >= 1)
        resumed.send_signal(signal.SIGKILL)
        resumed.communicate()
        ended = json.loads(json_of(ends(gemfleet(workplace, home, "resume", "ranks", "--json"))))
    assert (ended["state"], [trial["state"] for trial in ended["trials"]]) == ("finished", ["succeeded"] * 3)
    assert ended["best"] in [trial["run"] for trial in ended["trials"]]
    for number in (1, 2, 3):
        run_id = f"ranks-00{number}"
        assert trained_steps(home / "runs" / run_id / "output") == list(range(1, 31))
        launches = [event for event in registry.events(run_id) if event["data"].get("state") == RunState.QUEUED]
        assert len(launches) == (1 if number == 3 else 2)
    resumes = [event["message"] for event in registry.events("ranks-001") if event["kind"] == "resume"]
    assert f"checkpoint-{saved[0]}" in resumes[-1]
    logs = "".join((home / "runs" / f"ranks-00{number}" / "logs" / "driver.log").read_text() for number in (1, 2, 3))
    assert logs.count("Used again what an earlier run tokenised of rows.jsonl") == 4  # of five launches, one prepared
    shown = ends(gemfleet(workplace, home, "show", "ranks"))
    assert "sweep ranks: finished, 3 of 3 trials have ended (3 succeeded)" in shown
    assert "nothing is left to do" in ends(gemfleet(workplace, home, "resume", "ranks"))


def write_config(workplace: Path, address: str) -> None:
    train = {
        "model": "./model",
        "data": {"train": "rows.jsonl", "max_length": 64},
        "batch": {"global": 4},
        "epochs": 2.0,
        "precision": "fp32",
        "evaluation": {"every": 5},
    }
    cluster = {"address": address, "workers": 1, "wait_for_resources_s": 30.0}
    (workplace / "run.yaml").write_text(yaml.safe_dump({"train": train, "cluster": cluster}))


def step_of(registry: RunRegistry, number: int) -> int:
    return int((registry.latest_metrics(f"ranks-00{number}", "step") or {"step": 0})["step"])


def wait_for(home: Path, condition: Callable[[RunRegistry], Any], seconds: float = 400.0) -> None:
    deadline = time.monotonic() + seconds
    while not ((home / "gemfleet.db").exists() and condition(RunRegistry(home / "gemfleet.db"))):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.2)


def json_of(output: str) -> str:
    """The JSON at the end of what a command wrote; stderr is in front of it."""
    return output[output.index("\n{\n") :]
