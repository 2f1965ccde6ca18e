"""Where a sweep stands, from its file and the registry: what the table, the API and the board show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemfleet.cluster.registry.run_queries import RunQueries
from gemfleet.cluster.registry.run_records import Run, RunState

from .sweeps import Sweep, Trial, is_driven, stop_asked

WAITING, PRUNED = "waiting", "pruned"  # of trials, beside the states of runs
RUNNING, FINISHED, STOPPED, INTERRUPTED = "running", "finished", "stopped", "interrupted"  # of sweeps
DONE = (str(RunState.SUCCEEDED), PRUNED)  # what a resumed sweep leaves as it is
OVER = (*DONE, str(RunState.FAILED), str(RunState.STOPPED))
REMOVED = "its run was removed from this disk"
Evaluations = Sequence[tuple[int, float]]  # steps and losses, in the order of steps


@dataclass(frozen=True)
class TrialView:
    """One trial.

    run_id: of its run, which may not be in the registry yet; settings: by field
    state: of its run, or `waiting` or `pruned`; reason: why, where something is to be said
    value: the lowest loss after the first step, at `best_step`; None before it is known
    """

    number: int
    run_id: str
    settings: dict[str, str]
    state: str
    reason: str
    step: int
    total_steps: int
    value: float | None
    best_step: int | None
    evaluations: Evaluations

    @property
    def is_live(self) -> bool:
        """Whether its run is in the registry and has not ended."""
        return self.state != WAITING and self.state not in (*OVER, str(RunState.INTERRUPTED))


@dataclass(frozen=True)
class SweepView:
    """A sweep and its trials so far. state: running, finished, stopped or interrupted; best: of the lowest value"""

    sweep: Sweep
    state: str
    trials: list[TrialView]

    @property
    def best(self) -> TrialView | None:
        failed = (str(RunState.FAILED), str(RunState.INTERRUPTED))
        known = [trial for trial in self.trials if trial.value is not None and trial.state not in failed]
        return min(known, key=lambda trial: trial.value or 0.0, default=None)

    @property
    def ended(self) -> list[str]:
        """The states of the trials that are over."""
        return [trial.state for trial in self.trials if trial.state in OVER]

    def counted(self) -> str:
        """`4 of 6 trials have ended (3 succeeded, 1 pruned)`."""
        kinds = ", ".join(f"{self.ended.count(state)} {state}" for state in dict.fromkeys(self.ended))
        return f"{len(self.ended)} of {self.sweep.wanted} trials have ended" + (f" ({kinds})" if kinds else "")


def view_sweep(home: Path, registry: RunQueries, sweep: Sweep) -> SweepView:
    """Read the sweep's trials from the registry."""
    trials = [view_trial(registry, sweep, trial) for trial in sweep.trials]
    return SweepView(sweep, _state(home, sweep, [trial.state for trial in trials]), trials)


def summary(view: SweepView) -> str:
    """`sweep lr-…: running, 4 of 6 trials have ended (3 succeeded, 1 pruned)`."""
    return f"sweep {view.sweep.id}: {view.state}, {view.counted()}"


def view_trial(registry: RunQueries, sweep: Sweep, trial: Trial) -> TrialView:
    """Read where one trial stands."""
    run_id = sweep.run_id(trial)
    run = registry.run(run_id)
    step = (registry.latest_metrics(run_id, "step") if run else None) or {}
    found = evaluations(registry.metrics(run_id, kind="eval") if run else (), sweep.metric)
    best = min((one for one in found if one[0] > 0), key=lambda one: one[1], default=(None, None))
    return TrialView(
        number=trial.number,
        run_id=run_id,
        settings=trial.settings,
        state=_trial_state(run, trial),
        reason=trial.pruned or trial.failed or (run.reason if run else REMOVED if trial.removed else ""),
        step=step.get("step", 0),
        total_steps=step.get("total_steps", 0),
        value=best[1] if run else trial.value,
        best_step=best[0] if run else trial.best_step,
        evaluations=found,
    )


def evaluations(records: Iterable[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    """Steps and losses of evaluations. A loss that JSON cannot say is infinite.

    metric: `eval_loss`, or `eval_NAME_loss`, which is `eval_loss` too where the other sets turned out to be empty
    """
    name = metric.removeprefix("eval_").removesuffix("_loss")
    found = []
    for record in records:
        by_set = record.get("eval_losses") or {} if metric != "eval_loss" else {}
        value = by_set.get(name, record.get("eval_loss"))
        found.append((int(record["step"]), math.inf if value is None or math.isnan(value) else float(value)))
    return found


def _trial_state(run: Run | None, trial: Trial) -> str:
    if run is None:
        return trial.removed or (str(RunState.FAILED) if trial.failed else WAITING)
    ended = run.state.is_terminal and run.state is not RunState.SUCCEEDED
    return PRUNED if trial.pruned and ended else str(run.state)


def _state(home: Path, sweep: Sweep, trials: Sequence[str]) -> str:
    if is_driven(home, sweep.id):
        return RUNNING
    stopped = stop_asked(home, sweep.id)
    if len(trials) == sweep.wanted and all(state in (DONE if stopped else OVER) for state in trials):
        return FINISHED
    return STOPPED if stopped else INTERRUPTED
