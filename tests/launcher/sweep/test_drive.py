"""A sweep on a real registry and study, with pretended runs: what is begun, pruned, kept, stopped and resumed."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from gemfleet.cluster.driver import DriverLock
from gemfleet.cluster.errors import RunConflict
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.launcher.config.load import load_config
from gemfleet.launcher.runs.prune import Removal, carry_out
from gemfleet.launcher.runs.sweep_view import SweepView, view_sweep
from gemfleet.launcher.runs.sweeps import (
    STUDY_FILE,
    Range,
    Sweep,
    Trial,
    ask_to_stop,
    find_sweep,
    read_sweep,
    sweep_folder,
    sweep_of,
    take_stop_back,
)
from gemfleet.train.errors import UserError

pytest.importorskip("optuna", reason="needs the sweep extra")

from gemfleet.launcher.sweep.check import check_sweep
from gemfleet.launcher.sweep.drive import SweepDriver
from gemfleet.launcher.sweep.processes import TrialProcesses
from gemfleet.launcher.sweep.study import Study

STEPS = 8


def asked(**changes: object) -> Sweep:
    """A sweep of six: three ranks with two rates."""
    facts: dict[str, object] = {
        "id": "lr", "name": "lr", "created_at": 1.0, "launched_from": "/", "metric": "eval_loss",
        "grid": {"train.lora.r": ["8", "16", "32"], "train.optim.learning_rate": ["0.001", "0.01"]}, "ranges": {},
        "wanted": 6, "sampler": "grid", "seed": 0, "parallel": 2, "prune": False,
    }  # fmt: skip
    return Sweep.model_validate(facts | changes)


class PretendedRuns:
    """Processes that write what a run would: an evaluation at each second step, until the last or a stop."""

    def __init__(self, registry: RunRegistry, sweep: Sweep) -> None:
        self.registry, self.sweep = registry, sweep
        self.losses: dict[int, float] = {}  # by number: the loss of all its evaluations; by default the number itself
        self.refused: set[int] = set()
        self.calls: list[str] = []
        self.started: set[int] = set()

    def train(self, trial: Trial) -> None:
        self.calls.append(f"train {trial.number}")
        self.started.add(trial.number)
        if trial.number not in self.refused:
            self.registry.create_run(self.sweep.run_id(trial), "lr", "{}")
            self.registry.transition(self.sweep.run_id(trial), RunState.TRAINING)

    def resume(self, trial: Trial) -> None:
        self.calls.append(f"resume {trial.number}")
        self.started.add(trial.number)
        self.registry.reopen(self.sweep.run_id(trial), "{}")
        self.registry.transition(self.sweep.run_id(trial), RunState.TRAINING)

    def was_started(self, trial: Trial) -> bool:
        return trial.number in self.started

    def lives(self, trial: Trial) -> bool:
        return False

    def refusal(self, trial: Trial, begun: bool) -> str:
        return "the disk is full" if trial.number in self.refused & self.started else ""

    def go_on(self) -> int:
        """Two more steps of each run that goes on. Returns how many there are."""
        live = [
            t
            for t in self.sweep.trials
            if (run := self.registry.run(self.sweep.run_id(t))) and not run.state.is_terminal
        ]
        for trial in live:
            run_id = self.sweep.run_id(trial)
            if self.registry.stop_requested(run_id):
                self.registry.transition(run_id, RunState.STOPPED)
                continue
            step = ((self.registry.latest_metrics(run_id, "step") or {}).get("step") or 0) + 2
            where = {"step": step, "total_steps": STEPS, "epoch": step / STEPS, "epochs": 1.0}
            loss = self.losses.get(trial.number, float(trial.number))
            records = [{"kind": "step", "loss": 1.0, **where}, {"kind": "eval", "eval_loss": loss, **where}]
            self.registry.add_metrics(run_id, records)
            if step >= STEPS:
                self.registry.transition(run_id, RunState.SUCCEEDED)
        return len(live)


@pytest.fixture
def registry(tmp_path: Path) -> RunRegistry:
    return RunRegistry(tmp_path / "gemfleet.db")


def driven(tmp_path: Path, sweep: Sweep, runs: PretendedRuns) -> Generator[SweepView, None, None]:
    """What is seen after each round of a sweep, until nothing goes on."""
    folder = sweep_folder(tmp_path, sweep.id)
    folder.mkdir(parents=True, exist_ok=True)
    lock = DriverLock(folder)
    driver = SweepDriver(tmp_path, sweep, runs.registry, Study(sweep, folder), runs, sweep.parallel or 1)
    try:
        while driver.begin(driver.look()):
            runs.go_on()
            yield view_sweep(tmp_path, runs.registry, sweep)
    finally:
        lock.close()


def states(view: SweepView) -> list[str]:
    return [trial.state for trial in view.trials]


def test_a_grid_runs_in_order_at_most_two_at_once_and_names_the_best(tmp_path: Path, registry: RunRegistry) -> None:
    sweep = asked()
    runs = PretendedRuns(registry, sweep)
    runs.losses = {4: 0.5}
    most = max(states(view).count("training") for view in driven(tmp_path, sweep, runs))
    view = view_sweep(tmp_path, registry, sweep)
    assert most == 2
    assert runs.calls == [f"train {number}" for number in range(1, 7)]
    assert (view.state, states(view)) == ("finished", ["succeeded"] * 6)
    assert view.best is not None
    assert (view.best.run_id, view.best.value) == ("lr-004", 0.5)
    assert view.best.settings == {"train.lora.r": "16", "train.optim.learning_rate": "0.01"}
    assert read_sweep(tmp_path, "lr") == sweep


def test_worse_trials_are_pruned_with_a_reason_and_the_best_is_not(tmp_path: Path, registry: RunRegistry) -> None:
    sweep = asked(prune=True)
    runs = PretendedRuns(registry, sweep)
    runs.losses = {3: math.nan}
    list(driven(tmp_path, sweep, runs))
    view = view_sweep(tmp_path, registry, sweep)
    assert states(view) == ["succeeded", *["pruned"] * 5]
    assert view.trials[1].step < STEPS
    assert view.trials[1].reason == "evaluation loss 2.0000 at step 2 is not among the better half"
    assert view.trials[2].value == math.inf
    assert any("sweep lr prunes this trial: evaluation loss" in event["message"] for event in registry.events("lr-002"))
    assert view.best is not None
    assert view.best.number == 1
    assert list(driven(tmp_path, sweep, runs)) == []  # a resumed sweep leaves them as they are


def test_stop_and_resume_lose_nothing_also_after_a_kill(tmp_path: Path, registry: RunRegistry) -> None:
    sweep = asked()
    runs = PretendedRuns(registry, sweep)
    rounds = driven(tmp_path, sweep, runs)
    for _ in range(6):  # two have ended, two are halfway
        next(rounds)
    ask_to_stop(tmp_path, "lr")
    view = list(rounds)[-1]
    assert states(view) == ["succeeded", "succeeded", "stopped", "stopped", "waiting", "waiting"]
    assert view_sweep(tmp_path, registry, sweep).state == "stopped"
    take_stop_back(tmp_path, "lr")
    killed = read_sweep(tmp_path, "lr")
    assert killed is not None
    killed.trials = killed.trials[:2]  # as if the process was killed before it wrote the file
    again = PretendedRuns(registry, killed)
    rounds = driven(tmp_path, killed, again)
    next(rounds)
    rounds.close()  # killed: its runs go on without it
    last = PretendedRuns(registry, killed)
    list(driven(tmp_path, killed, last))
    assert again.calls + last.calls == ["resume 3", "resume 4", "train 5", "train 6"]
    assert view_sweep(tmp_path, registry, killed).state == "finished"


def test_a_trial_that_cannot_begin_fails_and_is_tried_again_on_resume(tmp_path: Path, registry: RunRegistry) -> None:
    sweep = asked()
    runs = PretendedRuns(registry, sweep)
    runs.refused = {2}
    list(driven(tmp_path, sweep, runs))
    view = view_sweep(tmp_path, registry, sweep)
    assert (view.state, states(view).count("succeeded")) == ("finished", 5)
    assert (view.trials[1].state, view.trials[1].reason) == ("failed", "the disk is full")
    again = PretendedRuns(registry, sweep)
    list(driven(tmp_path, sweep, again))
    assert again.calls == ["train 2"]
    assert states(view_sweep(tmp_path, registry, sweep)) == ["succeeded"] * 6


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_drawn_values_lie_in_their_range_and_are_not_drawn_again(
    tmp_path: Path, registry: RunRegistry, sampler: str
) -> None:
    rate = Range(low=1e-5, high=1e-3, log=True)
    ranges = {"train.optim.learning_rate": rate, "train.lora.r": Range(low=4, high=64, log=False)}
    sweep = asked(grid={"train.seed": ["1", "2"]}, ranges=ranges, wanted=8, sampler=sampler)
    runs = PretendedRuns(registry, sweep)
    rounds = driven(tmp_path, sweep, runs)
    for _ in range(8):
        next(rounds)
    rounds.close()
    list(driven(tmp_path, sweep, runs))
    drawn = [trial.settings for trial in sweep.trials]
    assert len(drawn) == len({settings["train.optim.learning_rate"] for settings in drawn}) == 8
    assert all(rate.low <= float(settings["train.optim.learning_rate"]) <= rate.high for settings in drawn)
    assert all(4 <= int(settings["train.lora.r"]) <= 64 for settings in drawn)
    assert {settings["train.seed"] for settings in drawn} <= {"1", "2"}


def test_a_sweep_is_found_by_its_beginning_and_a_trial_belongs_to_it(tmp_path: Path, registry: RunRegistry) -> None:
    for name in ("lr-a", "lr-b"):
        sweep = asked(id=name, wanted=1, grid={"train.lora.r": ["8"]})
        list(driven(tmp_path, sweep, PretendedRuns(registry, sweep)))
    (tmp_path / "runs" / "lr-a-001").mkdir(parents=True)
    found = [find_sweep(tmp_path, prefix) for prefix in ("lr-a", "lr-b", "lr-b-00", "lr-a-001", "latest", "x")]
    assert [one.id if one else None for one in found] == ["lr-a", "lr-b", None, None, None, None]
    with pytest.raises(UserError, match="2 sweeps begin with 'lr'"):
        find_sweep(tmp_path, "lr")
    assert [sweep_of(tmp_path, run) for run in ("lr-a-001", "lr-c-001", "lr-a")] == ["lr-a", None, None]


def test_a_removed_trial_stays_ended_and_none_is_removed_while_the_sweep_goes_on(
    tmp_path: Path, registry: RunRegistry
) -> None:
    sweep = asked(wanted=2, grid={"train.lora.r": ["8", "16"]}, parallel=1)
    runs = PretendedRuns(registry, sweep)
    removal = Removal("lr-001", tmp_path / "runs" / "lr-001", 0, None)
    for view in driven(tmp_path, sweep, runs):
        if states(view) == ["succeeded", "training"]:
            with pytest.raises(RunConflict, match="its sweep lr goes on"):
                carry_out(removal, registry)
    carry_out(removal, registry)
    kept = read_sweep(tmp_path, "lr")
    assert kept is not None
    view = view_sweep(tmp_path, registry, kept)
    assert (view.state, states(view)) == ("finished", ["succeeded"] * 2)
    assert (view.trials[0].value, view.trials[0].best_step) == (1.0, 2)
    assert list(driven(tmp_path, kept, PretendedRuns(registry, kept))) == []


def test_a_line_half_written_and_the_lock_of_a_killed_process_keep_no_study_from_opening(tmp_path: Path) -> None:
    sweep = asked()
    Study(sweep, tmp_path).ask()
    journal = tmp_path / STUDY_FILE
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    (tmp_path / f"{STUDY_FILE}.lock").symlink_to(journal)
    began = time.monotonic()
    study = Study(sweep, tmp_path)
    assert (study.ask().number, len(study.begun()), len(study.queued())) == (2, 2, 4)
    assert time.monotonic() - began < 20.0  # Optuna would wait 30 s for the lock


def test_a_trial_that_a_killed_process_has_started_is_known_to_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    sweep, trial = asked(), Trial(number=1, settings={})
    sweep_folder(tmp_path, sweep.id).mkdir(parents=True)
    first, second = TrialProcesses(tmp_path, sweep, "auto"), TrialProcesses(tmp_path, sweep, "auto")
    first.train(trial)
    assert first.lives(trial)
    assert second.lives(trial)
    assert not second.lives(Trial(number=2, settings={}))
    process = first._started[1]
    process.kill()
    process.wait()
    assert not second.lives(trial)


@pytest.mark.parametrize("taken", ["lr", "lr-002"])
def test_an_id_that_runs_have_is_no_id_for_a_sweep(tmp_path: Path, registry: RunRegistry, taken: str) -> None:
    from gemfleet.launcher.sweep.launch import refuse_taken

    registry.create_run("lr-007", "other", "{}")  # beyond the sweep's trials
    refuse_taken(tmp_path, asked())
    registry.create_run(taken, "other", "{}")
    with pytest.raises(RunConflict, match=f"a run '{taken}' exists already"):
        refuse_taken(tmp_path, asked())


def test_each_trial_of_a_grid_has_something_to_compare(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("train: {model: demo, data: {train: demo}, batch: {global: 8}}\n")
    sweep = asked(grid={"train.data.eval_fraction": ["0.1", "0"]}, wanted=2)
    with pytest.raises(UserError, match="eval is null and"):
        check_sweep(path, (), load_config(path), sweep)
