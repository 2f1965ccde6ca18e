"""W&B keeps a run: its offline files, read back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.config.reports import TrackerConfig
from gemfleet.launcher.tracking.processes import tracked
from support.followed_run import RUN, FollowedRun
from support.wandb_files import artifacts_of, config_of, exit_code, history_of

pytest.importorskip("wandb", reason="needs the wandb extra")
OFFLINE = TrackerConfig(type="wandb", project="p", mode="offline")


@pytest.mark.slow
def test_offline_files_have_all_of_a_run_that_was_killed_and_resumed(tmp_path: Path) -> None:
    run = FollowedRun(tmp_path / "home")
    with tracked(run.registry, RUN, [OFFLINE], print):
        run.train(range(1, 21))
        run.registry.transition(RUN, RunState.INTERRUPTED, "the driver process is gone")
    run.registry.reopen(RUN, "", os.getpid())
    with tracked(run.registry, RUN, [OFFLINE], print):
        run.train(range(16, 31))
        run.publish()
    first, second = sorted(run.folder.glob("trackers/wandb/offline-run-*/*.wandb"))
    assert [path.name for path in (first, second)] == [f"run-{RUN}.wandb"] * 2  # one run of W&B
    history = [*history_of(first), *history_of(second)]
    assert [row["step"] for row in history if "train/loss" in row] == [*range(1, 31)]
    assert history[-1]["train/loss"] == pytest.approx(1 / 30)
    assert history[-1]["train/memory_bytes/rank-1"] == 60
    assert (history[-1]["eval/loss"], history[-1]["_timestamp"]) == (0.5, 1031.0)
    settings = config_of(second)
    assert settings["train.lora.r"] == 8
    assert "hunter2" not in str(settings)
    assert artifacts_of(second) == ["README.md", "adapter_model.safetensors"]
    assert (exit_code(first), exit_code(second)) == (1, 0)
    assert run.tracker.done
    assert run.told() == ["wandb (p) follows the run"]
