"""A sweep's study in Optuna: which values the next trial gets, and which trial is worse than the others."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gemfleet.launcher.runs.sweeps import STUDY_FILE, Sweep, Trial
from gemfleet.train.errors import UserError

from .space import Space

if TYPE_CHECKING:
    import optuna

FACTOR = 2  # of the trials that reach a rung, the better half goes on


def need_optuna() -> None:
    """Raise UserError if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("a sweep needs Optuna, which is not installed here; `pip install 'gemfleet[sweep]'`") from None


class Study:
    """The study in a sweep's folder, made where it is missing. It is on disk after each call.

    Rungs are evaluations: the 1st, 2nd, 4th, 8th … of a trial. A trial that reaches one goes on if its loss is among
    the lower half of those that reached it before (asynchronous successive halving, Li et al. 2018, arXiv:1810.05934).
    """

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        need_optuna()
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._space = Space(sweep.grid, sweep.ranges)
        _clear_rests(folder / STUDY_FILE)
        storage = JournalStorage(JournalFileBackend(str(folder / STUDY_FILE)))
        self._study = optuna.create_study(
            study_name=sweep.id,
            storage=storage,
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=FACTOR),
            load_if_exists=True,
        )
        begun = len(self._study.trials)
        seed = sweep.seed + begun  # a sampler begins anew here; with the same seed it would repeat its first values
        tpe = sweep.sampler == "tpe"
        self._study.sampler = (optuna.samplers.TPESampler if tpe else optuna.samplers.RandomSampler)(seed=seed)
        if sweep.sampler == "grid":
            for settings in list(self._space.combinations())[begun:]:
                self._study.enqueue_trial(settings)

    def begun(self) -> list[Trial]:
        """The trials that have their values, in the order of their numbers."""
        import optuna

        waiting = optuna.trial.TrialState.WAITING
        return [
            Trial(number=t.number + 1, settings=self._settings(t)) for t in self._study.trials if t.state != waiting
        ]

    def queued(self) -> list[Trial]:
        """The combinations of a grid that are not begun yet."""
        import optuna

        found = self._study.get_trials(states=[optuna.trial.TrialState.WAITING])
        return [Trial(number=t.number + 1, settings=dict(t.system_attrs["fixed_params"])) for t in found]

    def ask(self) -> Trial:
        """The next trial, with its values."""
        trial = self._study.ask()
        return Trial(number=trial.number + 1, settings=self._suggested(trial))

    def report(self, number: int, losses: Sequence[float]) -> None:
        """Tell the losses of all evaluations of a trial so far, but for the one before its first step."""
        trial = self._trial(number)
        known = self._study.trials[number - 1].intermediate_values
        for index, loss in enumerate(losses, 1):
            if index not in known:
                trial.report(loss if math.isfinite(loss) else math.nan, index)

    def should_prune(self, number: int) -> bool:
        """Whether the trial's newest evaluation says that it is not worth going on."""
        return bool(self._trial(number).should_prune())

    def succeeded(self, number: int, loss: float) -> None:
        """A trial has trained to its end. May be called again."""
        self._end(number, loss)

    def pruned(self, number: int) -> None:
        """A trial was ended before its last step. May be called again."""
        self._end(number, None)

    def _end(self, number: int, loss: float | None) -> None:
        import optuna

        states = optuna.trial.TrialState
        if self._study.trials[number - 1].state != states.RUNNING:
            return
        if loss is None or not math.isfinite(loss):
            self._study.tell(number - 1, state=states.PRUNED if loss is None else states.FAIL)
        else:
            self._study.tell(number - 1, loss)

    def _trial(self, number: int) -> optuna.trial.Trial:
        import optuna

        return optuna.trial.Trial(self._study, self._study.trials[number - 1]._trial_id)

    def _settings(self, frozen: optuna.trial.FrozenTrial) -> dict[str, str]:
        """The values of a trial. One that was killed while it got them gets the rest now."""
        if all(field in frozen.params for field in (*self._space.grid, *self._space.ranges)):
            return {field: _text(frozen.params[field]) for field in (*self._space.grid, *self._space.ranges)}
        return self._suggested(self._trial(frozen.number + 1))

    def _suggested(self, trial: optuna.trial.Trial) -> dict[str, str]:
        found = {field: str(trial.suggest_categorical(field, values)) for field, values in self._space.grid.items()}
        for field, one in self._space.ranges.items():
            if isinstance(one.low, int) and isinstance(one.high, int):
                found[field] = _text(trial.suggest_int(field, one.low, one.high, log=one.log))
            else:
                found[field] = _text(trial.suggest_float(field, one.low, one.high, log=one.log))
        return found


def _clear_rests(journal: Path) -> None:
    """Cut off a line that a full disk left half written, and remove the lock of a process that was killed.

    The sweep's own lock keeps other processes away.
    """
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    content = journal.read_bytes() if journal.exists() else b""
    if content and not content.endswith(b"\n"):
        os.truncate(journal, content.rfind(b"\n") + 1)


def _text(value: object) -> str:
    """A value as `--set` takes it. Those of a grid are texts already."""
    return value if isinstance(value, str) else json.dumps(value)
