"""`gemfleet watch`"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Run
from .run_source import Address, open_source

if TYPE_CHECKING:
    from gemfleet.launcher.api.schemas import RunDetail


BAR_CELLS = 60


def watch(
    run: Run,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 1.0,
    address: Address = None,
) -> None:
    """Watch a run live until it ends; Ctrl-C leaves it running. Without a terminal, print its state once.

    Examples:

      gemfleet watch latest
    """
    from rich.console import Console
    from rich.live import Live

    console, source = Console(), open_source(run, address)
    detail = source.detail()
    if not console.is_terminal:
        console.print(view(detail))
        return
    try:
        with Live(view(detail), console=console, auto_refresh=False) as live:
            while not detail.status.is_terminal:
                time.sleep(every)
                detail = source.detail()
                live.update(view(detail), refresh=True)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def view(run: RunDetail) -> Any:
    """A bar, the newest figures, and the ranks."""
    from rich import box
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in facts_of(run).items():
        facts.add_row(Text(name, "dim"), Text(value))
    ranks = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("rank", "address", "process", "last heard of"):
        ranks.add_column(name, overflow="fold", no_wrap=name != "address")
    for rank in run.ranks:
        ranks.add_row(str(rank.rank), rank.address, str(rank.pid), f"{rank.heartbeat_age_seconds:.0f} s ago")
    head = Text.assemble((run.id, "bold"), "  ", (run.status.replace("_", " "), "cyan"))
    bar = Table.grid()  # without a table around it, a bar does not end its line
    bar.add_row(ProgressBar(total=1.0, completed=run.progress.fraction, width=BAR_CELLS))
    return Group(head, bar, facts, *([ranks] if run.ranks else []))


def facts_of(run: RunDetail) -> dict[str, str]:
    """The label and the value of each line whose value is known."""
    from gemfleet.launcher.display import clock_time

    from .local_runs import size

    progress, rates = run.progress, (run.throughput and run.throughput.model_extra) or {}
    known: dict[str, str | None] = {
        "why": run.waiting_for or run.reason or run.stopped_early,
        "step": f"{progress.step} of {progress.total_steps}" if progress.total_steps else None,
        "epoch": f"{progress.epoch:.2f} of {progress.epochs:g}" if progress.epochs else None,
        "time left": None if progress.eta_seconds is None else clock_time(progress.eta_seconds),
        "loss": None if run.loss is None else f"{run.loss:.4f}",
        "evaluation": None if run.eval_loss is None else f"{run.eval_loss:.4f}",
        "tokens/s": f"{rates['tokens_per_second']:,.0f}" if rates.get("tokens_per_second") else None,
        "memory": size(rates["peak_memory_bytes"]) if rates.get("peak_memory_bytes") else None,
        "checkpoint": f"step {run.last_checkpoint.step}, {run.last_checkpoint.state}" if run.last_checkpoint else None,
        "published": run.published,
        "restarts": str(run.restarts) if run.restarts else None,
    }
    return {name: value for name, value in known.items() if value is not None}
