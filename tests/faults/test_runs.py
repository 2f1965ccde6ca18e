"""Faults of whole runs: each ends where an undisturbed run does, or in a state that says why."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from gemfleet.benchmarks.faults.recovery import recovery_of
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.launcher.tracking.state import tracker_states
from safetensors.torch import load_file
from support.fault_table import EPOCHS, SEED, Place, tell, verifies
from support.tiny_run import (
    SAVE_EVERY,
    STEPS_PER_EPOCH,
    ends,
    gemfleet,
    history,
    start,
    states,
    trained_steps,
    wait_for_step,
)

pytestmark = [pytest.mark.slow, pytest.mark.faults]
STEPS = int(EPOCHS) * STEPS_PER_EPOCH
ALIKE = 200


def newest_step(registry: RunRegistry, run_id: str) -> int:
    newest = registry.latest_metrics(run_id, "step")
    assert newest is not None
    return int(newest["step"])


def losses(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of each step in the history of a published adapter."""
    return [(entry["step"], entry["loss"]) for entry in history(folder) if "loss" in entry]


def test_a_killed_rank(place: Place, home: Path) -> None:
    """At a random step. On the same ranks and strategy, losses and adapter are those of the undisturbed run, bit for
    bit."""
    chance = random.Random(SEED)
    process = start(place.workplace, home, place.address, EPOCHS)
    registry = wait_for_step(home, chance.randint(SAVE_EVERY + 1, STEPS // 3))
    (run,) = registry.list_runs()
    at, last = time.time(), newest_step(registry, run.id)
    os.kill(registry.ranks(run.id)[chance.randrange(2)]["pid"], signal.SIGKILL)
    ends(process)
    assert states(registry, run.id)[-4:] == ["restarting", "training", "publishing", "succeeded"]
    output = home / "runs" / run.id / "output"
    assert trained_steps(output) == list(range(1, STEPS + 1))
    assert losses(output) == losses(place.whole)
    name = "adapter_model.safetensors"
    assert (output / name).read_bytes() == (place.whole / name).read_bytes()
    verifies(home, run.id)
    recovery = recovery_of(registry, run.id, at, last)
    assert recovery.steps_lost <= 2 * SAVE_EVERY  # one interval, and the checkpoint that was on its way
    assert recovery.seconds < 60
    tell(
        f"rank killed (SIGKILL) at step {last}, seed {SEED}",
        "succeeded, bit-identical",
        recovery.resumed,
        recovery.steps_lost,
        recovery.seconds,
    )


def test_a_rank_that_hangs(place: Place, home: Path) -> None:
    limit = 8.0
    limits = tuple(f"cluster.watchdog.{phase}_s={limit}" for phase in ("step", "evaluate", "save"))
    process = start(place.workplace, home, place.address, EPOCHS, limits)
    registry = wait_for_step(home, 9)
    (run,) = registry.list_runs()
    at, last, victim = time.time(), newest_step(registry, run.id), registry.ranks(run.id)[1]["pid"]
    os.kill(victim, signal.SIGSTOP)
    try:
        ends(process)
    finally:
        assert gone(victim)
    hangs = [event for event in registry.events(run.id) if event["kind"] == "hang"]
    assert hangs
    assert limit < hangs[0]["time"] - at < limit + 6
    stacks = (home / "runs" / run.id / "logs" / "stacks-2-rank-0.txt").read_text()
    assert "in run_training" in stacks
    assert states(registry, run.id)[-1] == "succeeded"
    name = "adapter_model.safetensors"
    assert (home / "runs" / run.id / "output" / name).read_bytes() == (place.whole / name).read_bytes()
    verifies(home, run.id)
    recovery = recovery_of(registry, run.id, at, last)
    fault = f"rank stopped (SIGSTOP), watchdog at {limit:g} s"
    tell(fault, "succeeded, bit-identical", recovery.resumed, recovery.steps_lost, recovery.seconds)


def gone(pid: int, seconds: float = 15.0) -> bool:
    """Whether the process ends within this time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    return False


@pytest.mark.parametrize(
    ("elsewhere", "words"),
    [("cluster.workers=1", "on 1 rank instead of 2"), ("train.strategy=fsdp2", "under FSDP2 instead of DDP")],
)
def test_a_killed_driver_and_a_damaged_checkpoint(place: Place, home: Path, elsewhere: str, words: str) -> None:
    """At a random step. On other ranks, or under another strategy, sums are taken in another order.

    So losses are equal to 1e-5 up to step `ALIKE`, and to 2e-3 at the end: undisturbed runs drift apart as far, by 1e-7
    up to step 200 and by 9e-4 at the end.

    MLflow follows both launches in one run of its own.
    """
    tracked = (f"trackers=[{{type: mlflow, uri: 'file://{home}/mlflow'}}]",) if find_spec("mlflow") else ()
    process = start(place.workplace, home, place.address, EPOCHS, tracked)
    registry = wait_for_step(home, random.Random(SEED).randint(3 * SAVE_EVERY, STEPS // 3))
    (run,) = registry.list_runs()
    process.kill()
    process.communicate()
    registry.mark_interrupted()  # the status API may have done so already
    assert registry.get_run(run.id).state == "interrupted"
    checkpoints = home / "runs" / run.id / "checkpoints"
    newest, before = sorted((int(p.name[11:]) for p in checkpoints.glob("checkpoint-*")), reverse=True)[:2]
    data = checkpoints / f"checkpoint-{newest}" / "optimizer.safetensors"
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    for state in (home / "runs" / run.id / "ray").rglob("*.json"):
        state.write_text("{")  # what Ray keeps is never read on resume
    assert "is damaged" in ends(gemfleet(place.workplace, home, "checkpoints", run.id, "verify"), code=1)
    at, last = time.time(), newest_step(registry, run.id)
    ends(gemfleet(place.workplace.parent, home, "resume", "latest", "--set", elsewhere))
    assert states(registry, run.id)[-1] == "succeeded"
    assert "interrupted" in states(registry, run.id)
    damaged = [event["message"] for event in registry.events(run.id) if event["kind"] == "checkpoint_damaged"]
    assert len(damaged) == 1
    assert f"checkpoint-{newest}" in damaged[0]
    output = home / "runs" / run.id / "output"
    assert trained_steps(output) == list(range(1, STEPS + 1))
    if tracked:
        (tracker,) = tracker_states(home / "runs" / run.id)
        (losses_file,) = home.glob("mlflow/*/*/metrics/train/loss")
        assert losses_file.parents[2].name == tracker.id
        assert [int(line.split()[2]) for line in losses_file.read_text().splitlines()] == list(range(1, STEPS + 1))
    ours, whole = (load_file(folder / "adapter_model.safetensors") for folder in (output, place.whole))
    assert max(float((ours[name] - whole[name]).abs().max()) for name in whole) < 1e-3
    pairs = zip(losses(output), losses(place.whole), strict=True)
    apart = [abs(mine[1] / undisturbed[1] - 1) for mine, undisturbed in pairs]
    assert max(apart[:ALIKE]) < 1e-5
    assert max(apart) < 2e-3
    verifies(home, run.id)
    recovery = recovery_of(registry, run.id, at, last)
    assert recovery.resumed == f"checkpoint-{before}"
    tell(
        f"driver killed at step {last}, newest checkpoint damaged, resumed {words}, seed {SEED}",
        *(f"succeeded, equal to 1e-5 up to step {ALIKE}", recovery.resumed, recovery.steps_lost, recovery.seconds),
    )


def test_sigterm_saves_and_resume_ends_bit_identical(place: Place, home: Path) -> None:
    process = start(place.workplace, home, place.address, EPOCHS)
    registry = wait_for_step(home, 9)
    (run,) = registry.list_runs()
    at = time.time()
    process.send_signal(signal.SIGTERM)
    assert "stopped after" in ends(process, code=130)
    assert states(registry, run.id)[-1] == "stopped"
    saved, stopped = registry.checkpoints(run.id)[-1], newest_step(registry, run.id)
    assert saved["step"] == stopped
    tell("SIGTERM (`ray job stop`)", "stopped", "-", 0, saved["created_at"] - at)
    ends(gemfleet(place.workplace, home, "train", "run.yaml", "--resume", "latest"))
    assert states(registry, run.id)[-1] == "succeeded"
    name = "adapter_model.safetensors"
    assert (home / "runs" / run.id / "output" / name).read_bytes() == (place.whole / name).read_bytes()


def test_a_step_of_the_clock_makes_no_second_driver(place: Place, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a process that sees other start times, nor one that finds the row ended, comes between run and driver."""
    process = start(place.workplace, home, place.address, EPOCHS)
    registry = wait_for_step(home, 5)
    (run,) = registry.list_runs()
    rank = registry.ranks(run.id)[0]["pid"]
    os.kill(rank, signal.SIGSTOP)  # so that the run does not end before the commands below
    started = psutil.Process.create_time
    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "create_time", lambda process: started(process) + 3.0)
        assert registry.mark_interrupted() == []
    assert "stop it first" in ends(gemfleet(place.workplace, home, "resume", run.id), code=2)
    with registry.connect() as db:  # as if a command had called it interrupted all the same
        db.execute("UPDATE runs SET state = 'interrupted' WHERE id = ?", (run.id,))
    refused = ends(gemfleet(place.workplace, home, "resume", run.id), code=2)
    assert f"carried out by process {process.pid} already" in refused
    with registry.connect() as db:
        db.execute("UPDATE runs SET state = 'training' WHERE id = ?", (run.id,))
    os.kill(rank, signal.SIGCONT)
    ends(process)
    assert states(registry, run.id)[-1] == "succeeded"
    name = "adapter_model.safetensors"
    assert (home / "runs" / run.id / "output" / name).read_bytes() == (place.whole / name).read_bytes()
    verifies(home, run.id)
    tell("clock set 3 s forward, `gemfleet resume` of a run that trains", "refused; succeeded, bit-identical", "-", 0)


def test_a_registry_lost_while_a_run_trains(place: Place, home: Path) -> None:
    """Its ranks train on, and their records wait until `gemfleet repair` has made a new one."""
    process = start(place.workplace, home, place.address, EPOCHS)
    registry = wait_for_step(home, 5)
    (run,) = registry.list_runs()
    for path in home.glob("gemfleet.db*"):
        path.unlink()
    time.sleep(3.0)
    assert "rebuilt from its folder" in ends(gemfleet(place.workplace, home, "repair"))
    assert registry.get_run(run.id).state == "training"
    ends(process)
    assert registry.get_run(run.id).state == "succeeded"
    name = "adapter_model.safetensors"
    assert (home / "runs" / run.id / "output" / name).read_bytes() == (place.whole / name).read_bytes()
    verifies(home, run.id)
    tell("registry deleted while training, `gemfleet repair`", "succeeded, bit-identical", "-", 0)


def test_a_killed_store(place: Place, home: Path) -> None:
    import ray

    process = start(place.workplace, home, place.address, EPOCHS)
    registry = wait_for_step(home, 9)
    (run,) = registry.list_runs()
    at = time.time()
    ray.kill(ray.get_actor(f"gemfleet-store-{run.id}", namespace="gemfleet"), no_restart=False)
    ends(process)
    assert "restarting" not in states(registry, run.id)
    assert states(registry, run.id)[-1] == "succeeded"
    name = "adapter_model.safetensors"
    assert (home / "runs" / run.id / "output" / name).read_bytes() == (place.whole / name).read_bytes()
    verifies(home, run.id)
    after = next(entry for entry in registry.checkpoints(run.id) if entry["created_at"] > at)
    tell("store actor killed", "succeeded, bit-identical", "-", 0, after["created_at"] - at)


def test_a_loss_that_is_not_a_number(place: Place, home: Path) -> None:
    overrides = ("train.optim.learning_rate=1e30", "train.optim.max_grad_norm=0.0")
    output = ends(start(place.workplace, home, place.address, 1.0, overrides), code=1)
    registry = RunRegistry(home / "gemfleet.db")
    (run,) = registry.list_runs()
    assert run.state == "failed"
    assert "step" in run.reason
    assert "restarting" not in states(registry, run.id)
    assert run.reason in output
    tell("loss is not a number", "failed, says the step", "-")


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """The folder of all runs on a disk of 64 MiB of its own."""
    runs = home / "runs"
    runs.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(runs)], check=False).returncode:
        pytest.skip("needs root, to mount a disk of 64 MiB")
    yield runs
    subprocess.run(["umount", str(runs)], check=True)


@pytest.mark.parametrize(("policy", "state"), [("continue", "succeeded"), ("stop", "stopped")])
def test_a_full_disk_on_the_head(place: Place, home: Path, small_disk: Path, policy: str, state: str) -> None:
    settings = (f"cluster.on_checkpoint_failure={policy}", "cluster.refuse_free_gib=0.0", "cluster.keep_checkpoints=3")
    # Long enough to be training still when there is room again, and few kept, so that it does not fill the disk itself.
    process = start(place.workplace, home, place.address, 4 * EPOCHS, settings)
    registry = wait_for_step(home, 9)
    (run,) = registry.list_runs()
    at = time.time()
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    event = wait_for_event(registry, run.id, "checkpoint_failed")
    assert "MiB free, too few" in event["message"]
    filler.unlink()  # what is published needs room as well
    ends(process)
    assert states(registry, run.id)[-1] == state
    verifies(home, run.id)
    tell(f"disk full on the head, `{policy}`", state, "-", 0, event["time"] - at)


def wait_for_event(registry: RunRegistry, run_id: str, kind: str, seconds: float = 60.0) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := [event for event in registry.events(run_id) if event["kind"] == kind]:
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"no event {kind}")
