"""Shows a sweep in a terminal: a live table, or a line for each change where there is no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemfleet.launcher.runs.sweep_view import OVER, WAITING, SweepView, TrialView, summary
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

ROOM = 8  # lines of a terminal that a live table leaves free
STYLES = {"succeeded": "green", "failed": "red", "interrupted": "red", "pruned": "yellow", "stopped": "yellow"}
SHOWN = ("training", "interrupted", *OVER)  # states that are worth a line in a log


def short_names(fields: Sequence[str]) -> dict[str, str]:
    """The last part of each field's name, or all of it where two would be equal."""
    ends = [field.rpartition(".")[2] for field in fields]
    return {field: end if ends.count(end) == 1 else field for field, end in zip(fields, ends, strict=True)}


def shown_value(text: str) -> str:
    """A value of a field for people: without quotes, a number with four digits."""
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text.strip('"')


def named(view: SweepView, trial: TrialView) -> str:
    """`trial 2 (r=16, learning_rate=0.0001)`."""
    names = short_names(view.sweep.fields)
    settings = ", ".join(f"{names[field]}={shown_value(value)}" for field, value in trial.settings.items())
    return f"trial {trial.number} ({settings})"


def table_of(view: SweepView, most_rows: int | None = None) -> Table:
    """All trials, the best one marked. most_rows: leave out those that wait, then those that are not going on"""
    names = short_names(view.sweep.fields)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("trial", *names.values(), "state", "step", _losses_name(view), "at step", ""):
        table.add_column(name, overflow="fold", justify="left" if name in ("state", "") else "right")
    for trial in _rows(view, most_rows):
        values = [shown_value(trial.settings.get(field, "")) for field in names]
        progress = f"{trial.step}/{trial.total_steps}" if trial.total_steps else ""
        loss = "" if trial.value is None else f"{trial.value:.4f}"
        step = "" if trial.best_step is None else str(trial.best_step)
        is_best = view.best is not None and trial.number == view.best.number
        state = Text(trial.state.replace("_", " "), STYLES.get(trial.state, ""))
        row = (str(trial.number), *values, state, progress, loss, step, "best" if is_best else "")
        table.add_row(*row, style="bold" if is_best else None)
    return table


class SweepDisplay:
    """A live table on a terminal, else lines. Notes are printed above the table."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._states: dict[int, str] = {}
        if self._live is not None:
            self._live.start()

    def show(self, view: SweepView) -> None:
        """Show where the sweep stands."""
        if self._live is not None:
            rows = max(3, self._console.height - ROOM)
            self._live.update(Group(Text(summary(view)), table_of(view, rows)), refresh=True)
            return
        for trial in view.trials:
            if trial.state != self._states.get(trial.number) and trial.state in SHOWN:
                self.tell(_line(view, trial))
            self._states[trial.number] = trial.state

    def tell(self, text: str) -> None:
        """Say something that is worth a line of its own."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def close(self) -> None:
        """Take the live table away."""
        if self._live is not None:
            self._live.stop()


def _line(view: SweepView, trial: TrialView) -> str:
    loss = "" if trial.value is None or trial.state not in OVER else f", {view.sweep.metric} {trial.value:.4f}"
    reason = f": {trial.reason}" if trial.reason else ""
    return f"{named(view, trial)}: {trial.state}{loss}{reason}"


def _rows(view: SweepView, most: int | None) -> list[TrialView]:
    if most is None or len(view.trials) <= most:
        return view.trials
    best = view.best

    def last_to_go(trial: TrialView) -> Any:
        return trial is not best, not trial.is_live, trial.state == WAITING, trial.number

    kept = sorted(view.trials, key=last_to_go)[:most]
    return sorted(kept, key=lambda trial: trial.number)


def _losses_name(view: SweepView) -> str:
    name = view.sweep.metric.removeprefix("eval_").removesuffix("_loss")
    return "eval loss" if name == "loss" else f"{name} loss"
