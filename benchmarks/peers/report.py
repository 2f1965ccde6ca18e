"""The result for people (a table) and for machines (a JSON record, and a summary of it in one line)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..shared.record import Record
from .contenders import CONTENDERS
from .stats import LOSS_TOLERANCE, REFERENCE, Summary, fastest, speed_ratios

BASELINE = "trl-default"
TRL_PREFIX = "trl-"


def results_of(summaries: Sequence[Summary]) -> dict[str, dict[str, Any]]:
    """The figures of each contender, as its record keeps them."""
    return {summary.contender: _result(summary, summaries) for summary in summaries}


def _result(summary: Summary, summaries: Sequence[Summary]) -> dict[str, Any]:
    best_trl = fastest(summaries, TRL_PREFIX)
    return {
        **asdict(summary),
        "counts": summary.counts,
        "ratio_to_trl_default": speed_ratios(summaries, BASELINE).get(summary.contender),
        "best_trl_mode": best_trl,
        "ratio_to_best_trl": speed_ratios(summaries, best_trl).get(summary.contender),
    }


def summary_line(records: Sequence[Record], folder: Path) -> str:
    """All contenders without raw runs and settings, as one line of JSON."""
    figures = {
        record.case: {
            "tokens_per_second": _rounded(record.results["tokens_per_second"]["median"], 2),
            "ratio_to_trl_default": _rounded(record.results["ratio_to_trl_default"], 3),
            "ratio_to_best_trl": _rounded(record.results["ratio_to_best_trl"], 3),
            "loss_difference": _rounded((record.results["parity"] or {}).get("mean_difference"), 6),
            "counts": record.results["counts"],
        }
        for record in records
    }
    return json.dumps({"suite": "peers", "records": str(folder), "results": figures}, allow_nan=True)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def print_table(console: Console, summaries: Sequence[Summary], statistics: Mapping[str, float]) -> None:
    """One row per contender, then what the columns mean and which rows do not count."""
    best_trl = fastest(summaries, TRL_PREFIX)
    over_default, over_best = speed_ratios(summaries, BASELINE), speed_ratios(summaries, best_trl)
    table = Table(title="One LoRA step, side by side")
    table.add_column("contender")
    for heading in (
        "tokens/s",
        "p10-p90",
        "s/step",
        "peak GiB",
        "mean loss",
        "loss diff",
        "vs trl-default",
        "vs best TRL",
    ):
        table.add_column(heading, justify="right")
    for summary in summaries:
        rate, seconds, parity = summary.tokens_per_second, summary.step_seconds, summary.parity
        table.add_row(
            summary.contender if summary.counts else f"{summary.contender} (does not count)",
            f"{rate['median']:.1f}",
            f"{rate['p10']:.1f}-{rate['p90']:.1f}",
            f"{seconds['median']:.2f}",
            f"{summary.peak_rss_bytes / 2**30:.2f}",
            f"{parity.mean_loss:.4f}" if parity else "-",
            f"{parity.mean_difference:.3%}" if parity else "-",
            _ratio(over_default.get(summary.contender)),
            _ratio(over_best.get(summary.contender)),
        )
    console.print(table)
    for line in _notes(summaries, statistics, best_trl):
        console.print(line, highlight=False)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _notes(summaries: Sequence[Summary], statistics: Mapping[str, float], best_trl: str | None) -> list[str]:
    notes = [
        f"{statistics['examples']} examples of {statistics['tokens_per_example_mean']} tokens on average "
        f"(median {statistics['tokens_per_example_median']}, longest {statistics['tokens_per_example_max']}), "
        f"{statistics['supervised_share']:.0%} supervised; padding a batch makes "
        f"{statistics['padding_share_when_padded']:.0%} of it padding.",
        "tokens/s: non-pad tokens of a step's examples over the seconds of that step, the same tokens for all; "
        "median over the measured steps of all repeats.",
    ]
    if best_trl:
        notes.append(f"Best TRL mode here: {best_trl} ({CONTENDERS[best_trl].summary}).")
    if all(summary.parity is None for summary in summaries):
        notes.append(f"Losses were not compared: `{REFERENCE}` was not among the contenders, or failed.")
    for summary in summaries:
        notes += [f"{summary.contender} {error}" for error in summary.errors]
        if summary.parity and not summary.parity.holds:
            notes.append(
                f"{summary.contender}'s mean loss departs from {REFERENCE}'s by more than {LOSS_TOLERANCE:.1%}."
            )
    return notes
