"""What a person sees while a run goes on: a live bar on a terminal, a plain line now and then in a job's log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TextIO

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TimeElapsedColumn,
)
from rich.text import Text

PLAIN_INTERVAL_SECONDS = 10.0
BAR_CELLS = 20
BESIDE_CELLS = 48  # the widest that all but the words takes: bar, counts of a million, and times
LEAST_CELLS = 16


class Display(Protocol):
    """Where the driver tells what it is doing."""

    @property
    def bars(self) -> Progress | None:
        """Where a phase may put bars of its own; None where there is no terminal."""
        ...

    def phase(self, text: str) -> None:
        """A new phase began; the one before is over."""
        ...

    def advance(self, done: int, total: int, facts: str = "") -> None:
        """How far the current phase is. total 0: unknown."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line of its own."""
        ...

    def close(self) -> None: ...


def open_display(output: TextIO | None = None) -> Display:
    """Live where the output is a terminal, else plain lines."""
    target = output or sys.stderr
    console = Console(file=target)
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(target)


class WordsColumn(ProgressColumn):
    """What a task does, cut to what the terminal has beside the bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> Text:
        text = Text(task.description, no_wrap=True)
        text.truncate(max(LEAST_CELLS, self._console.width - BESIDE_CELLS), overflow="ellipsis")
        text.pad_right(max(0, LEAST_CELLS - text.cell_len))
        return text


class PhasesProgress(Progress):
    """A line for each phase, and below them what the newest one that has facts says of itself."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        facts = [task.fields["facts"] for task in self.tasks if task.fields.get("facts")]
        if facts:
            yield Text(f"  {facts[-1]}", overflow="fold")


class LiveDisplay:
    """One live bar, for the phase that runs."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress: Progress = PhasesProgress(
            SpinnerColumn(finished_text="[green]✓"),
            WordsColumn(console),
            BarColumn(bar_width=BAR_CELLS),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=4,
            get_time=clock,
        )
        self._task: TaskID | None = None
        self._progress.start()

    @property
    def bars(self) -> Progress | None:
        return self._progress

    def phase(self, text: str) -> None:
        self._finish()
        self._task = self._progress.add_task(text, total=None)

    def advance(self, done: int, total: int, facts: str = "") -> None:
        if self._task is None:
            return
        self._progress.update(self._task, completed=done, total=total or None, facts=facts)

    def note(self, text: str) -> None:
        self._progress.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def close(self) -> None:
        self._finish()
        self._progress.stop()

    def _finish(self) -> None:
        if self._task is not None:
            total = next((t.total for t in self._progress.tasks if t.id == self._task), None) or 1
            self._progress.update(self._task, total=total, completed=total)
            self._task = None


class PlainDisplay:
    """Lines for a log file: each phase, each note, and progress at most every ten seconds and at its end."""

    def __init__(self, output: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._output = output
        self._clock = clock
        self._phase = ""
        self._last_line = 0.0
        self._last: tuple[int, str] = (-1, "")

    @property
    def bars(self) -> Progress | None:
        return None

    def phase(self, text: str) -> None:
        self._phase, self._last_line, self._last = text, self._clock(), (-1, "")
        self._write(text)

    def advance(self, done: int, total: int, facts: str = "") -> None:
        due = self._clock() - self._last_line >= PLAIN_INTERVAL_SECONDS or (total and done == total)
        if (done, facts) == self._last or not due:
            return
        self._last_line, self._last = self._clock(), (done, facts)
        self._write(f"{self._phase}: {done}/{total}" + (f"  {facts}" if facts else ""))

    def note(self, text: str) -> None:
        self._write(text)

    def close(self) -> None:
        self._output.flush()

    def _write(self, text: str) -> None:
        print(text, file=self._output, flush=True)


def training_facts(step: Mapping[str, Any] | None, evaluation: Mapping[str, Any] | None) -> str:
    """`epoch 0.50/2  loss 1.834  eval 1.902  512 tokens/s  ETA 3:05` from the newest records of the loop."""
    facts = []
    if step:
        facts.append(f"epoch {step['epoch']:.2f}/{step['epochs']:g}")
        facts.append(f"loss {step['loss']:.3f}")
    if evaluation:
        facts.append(f"eval {evaluation['eval_loss']:.3f}")
    if step:
        facts.append(f"{step['tokens_per_second']:,.0f} tokens/s")
        facts.append(f"ETA {clock_time(step['seconds_left'])}")
    return "  ".join(facts)


def run_facts(figures: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    """`loss 1.834 on average  eval 1.902  512 tokens/s at the median`: of a run whose training is over."""
    facts = []
    if "loss" in figures:
        facts.append(f"loss {figures['loss']:.3f} on average")
    if evaluation:
        facts.append(f"eval {evaluation['eval_loss']:.3f}")
    if "tokens_per_second" in figures:
        facts.append(f"{figures['tokens_per_second']:,.0f} tokens/s at the median")
    return "  ".join(facts)


def clock_time(seconds: float) -> str:
    """`3:05` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
