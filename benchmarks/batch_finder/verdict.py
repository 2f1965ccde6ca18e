"""What the figures of a cap must show, and the table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemfleet.train.batch_finder.search import MAX_MEMORY_TRIALS
from rich.table import Table

SHARE_OF_BEST = 0.97


def misses(results: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for each figure that is not what it should be."""
    found = []
    for result in results:
        cap, ours, training = result["cap_bytes"], result["gemfleet"], result["training"]
        under = f"under {cap / 2**30:.2f} GiB"
        if ours["of_best"] < SHARE_OF_BEST:
            found.append(f"{under}: {ours['rows']} rows are {ours['of_best']:.1%} of the best ({result['best_rows']})")
        if ours["memory_trials"] > MAX_MEMORY_TRIALS:
            found.append(f"{under}: {ours['memory_trials']} trials for the largest size")
        if training.get("error") or training["peak_bytes"] > cap:
            found.append(f"{under}: training took {training.get('error') or training['peak_bytes']}")
    return found


def table_of(results: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="micro-batch found under a cap, CPU, one rank")
    for column in ("cap GiB", "best of all", "", "rows", "of best", "seconds", "trials", "training's peak GiB"):
        table.add_column(column, justify="right")
    for result in results:
        cap, best = f"{result['cap_bytes'] / 2**30:.3f}", str(result["best_rows"])
        for name in ("gemfleet", "accelerate"):
            table.add_row(cap, best, name, *_cells(result[name]), _peak(result) if name == "gemfleet" else "")
    return table


def _cells(found: dict[str, Any]) -> list[str]:
    if "error" in found:
        return [found["error"], "", "", ""]
    return [str(found["rows"]), f"{found['of_best']:.1%}", f"{found['seconds']:.1f}", str(found["trials"])]


def _peak(result: dict[str, Any]) -> str:
    training = result["training"]
    return training["error"] if "error" in training else f"{training['peak_bytes'] / 2**30:.3f}"
