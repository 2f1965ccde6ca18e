"""Carries a sweep out: starts its trials, watches their runs in the registry, and ends those that are worse.

All that it knows is on disk or in the registry, so another process can go on with it at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from gemfleet.cluster.errors import RunConflict
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.launcher.runs.sweep_view import DONE, PRUNED, WAITING, SweepView, TrialView, view_sweep
from gemfleet.launcher.runs.sweeps import Sweep, Trial, ask_to_stop, stop_asked, write_sweep

from .study import Study

POLL_SECONDS = 1.0


class Processes(Protocol):
    """See `TrialProcesses`."""

    def train(self, trial: Trial) -> None: ...
    def resume(self, trial: Trial) -> None: ...
    def was_started(self, trial: Trial) -> bool: ...
    def lives(self, trial: Trial) -> bool: ...
    def refusal(self, trial: Trial, begun: bool) -> str: ...


class SweepDriver:
    """One launch of a sweep, by the process that holds its lock. parallel: trials at once"""

    def __init__(
        self, home: Path, sweep: Sweep, registry: RunRegistry, study: Study, processes: Processes, parallel: int
    ) -> None:
        self._home, self._sweep, self._registry, self._parallel = home, sweep, registry, parallel
        self._study, self._processes = study, processes
        self._settled: set[int] = set()
        self._reported: dict[int, int] = {}  # how many evaluations of each trial the study knows
        known = {trial.number: trial for trial in sweep.trials}  # what the file lacks, the study has
        found = [known.get(trial.number, trial) for trial in (*study.begun(), *study.queued())]
        self._sweep.trials = sorted(found, key=lambda trial: trial.number)
        write_sweep(home, sweep)

    def carry_out(self, show: Callable[[SweepView], None]) -> None:
        """Go on until no trial is left, or somebody asked the sweep to stop and all runs have ended.

        show: called about once a second. A first KeyboardInterrupt stops the sweep in order, a second one is raised.
        """
        while True:
            try:
                view = self.look()
                show(view)
                if not self.begin(view):
                    return
                time.sleep(POLL_SECONDS)
            except KeyboardInterrupt:
                if stop_asked(self._home, self._sweep.id):
                    raise
                self.interrupted()

    def interrupted(self) -> None:
        """Somebody pressed Ctrl-C: begin no further trial, and ask those that run to save and end."""
        from gemfleet.launcher.run.signals import SIGNALS

        SIGNALS.heard()
        ask_to_stop(self._home, self._sweep.id)

    def look(self) -> SweepView:
        """Read where all trials stand, tell the study, and ask those to stop that shall."""
        self._registry.mark_interrupted()
        view = view_sweep(self._home, self._registry, self._sweep)
        stopping = stop_asked(self._home, self._sweep.id)
        for trial, seen in zip(self._sweep.trials, view.trials, strict=True):
            self._notice_failure(trial, seen)
            if seen.number not in self._settled:
                self._tell_study(trial, seen)
            if seen.is_live and (stopping or trial.pruned):
                self._stop(seen)
        return view

    def begin(self, view: SweepView) -> bool:
        """Start trials while there is room. Returns whether anything is going on."""
        live = [seen.number for seen in view.trials if self._goes_on(seen)]
        if not stop_asked(self._home, self._sweep.id):
            left = [seen for seen in view.trials if seen.number not in live and self._is_left(seen)]
            while len(live) < self._parallel and (left or self._may_ask()):
                trial = self._sweep.trials[left.pop(0).number - 1] if left else self._ask()
                self._start(trial)
                live.append(trial.number)
        return bool(live)

    def _goes_on(self, seen: TrialView) -> bool:
        trial = self._sweep.trials[seen.number - 1]
        ended = seen.state in DONE and not self._processes.was_started(trial)
        return seen.is_live or (not ended and self._processes.lives(trial))

    def _is_left(self, seen: TrialView) -> bool:
        return seen.state not in DONE and not self._processes.was_started(self._sweep.trials[seen.number - 1])

    def _may_ask(self) -> bool:
        return len(self._sweep.trials) < self._sweep.wanted

    def _ask(self) -> Trial:
        """A trial with new values. The study knows it before the file, and the file before its process starts."""
        trial = self._study.ask()
        self._sweep.trials.append(trial)
        write_sweep(self._home, self._sweep)
        return trial

    def _start(self, trial: Trial) -> None:
        if any(seen.number == trial.number for seen in self._study.queued()):
            self._study.ask()  # takes the oldest of the queue: grids begin in order
        if trial.failed:
            trial.failed = ""
            write_sweep(self._home, self._sweep)
        if self._registry.run(self._sweep.run_id(trial)) is None:
            self._processes.train(trial)
        else:
            self._processes.resume(trial)

    def _tell_study(self, trial: Trial, seen: TrialView) -> None:
        """Report new evaluations; prune a trial that is worse than others; settle one that has ended."""
        losses = [loss for step, loss in seen.evaluations if step > 0]
        if len(losses) != self._reported.get(seen.number, 0):
            self._study.report(seen.number, losses)
            self._reported[seen.number] = len(losses)
            ended = seen.evaluations[-1][0] >= seen.total_steps
            judged = self._sweep.prune and seen.is_live and not trial.pruned and not ended
            if judged and self._study.should_prune(seen.number):
                self._prune(trial, seen)
        if seen.state in DONE:
            self._settled.add(seen.number)
            if seen.state == PRUNED:
                self._study.pruned(seen.number)
            elif seen.value is not None:
                self._study.succeeded(seen.number, seen.value)

    def _prune(self, trial: Trial, seen: TrialView) -> None:
        """The mark comes first: were this process killed in between, the next one asks the run to stop."""
        step, loss = seen.evaluations[-1]
        trial.pruned = f"evaluation loss {loss:.4f} at step {step} is not among the better half"
        write_sweep(self._home, self._sweep)
        self._registry.add_event(
            seen.run_id, EventKind.NOTE, f"sweep {self._sweep.id} prunes this trial: {trial.pruned}"
        )
        self._stop(seen)

    def _stop(self, seen: TrialView) -> None:
        with suppress(RunConflict):  # it ended just now
            if not self._registry.stop_requested(seen.run_id):
                self._registry.request_stop(seen.run_id)

    def _notice_failure(self, trial: Trial, seen: TrialView) -> None:
        """Keep why a trial's process ended before it could begin."""
        if seen.is_live or seen.state in DONE or trial.failed:
            return
        if words := self._processes.refusal(trial, begun=seen.state != WAITING):
            trial.failed = words
            write_sweep(self._home, self._sweep)
