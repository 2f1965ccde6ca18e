"""Compare the records of two builds case by case: regressed, improved, or noise, with a confidence interval.

For a verdict to be worth something, take both builds' runs in turn on one machine: `--repeat N` only adds the rounds
that are missing, so give each build its own --out and call both with --repeat 1, then 2, and so on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from gemfleet.train.errors import UserError
from rich.console import Console
from rich.table import Table

from ..shared.record import Record, read_records
from ..shared.repeat import report_console
from .statistics import CONFIDENCE, THRESHOLD, Verdict, judge

FEW_RUNS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gemfleet bench compare`."""
    parser.add_argument("a", type=Path, metavar="A", help="records of the build to compare with: a folder or a file")
    parser.add_argument("b", type=Path, metavar="B", help="records of the new build")
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        help=f"a change below this share is noise, however sure it is (default: {THRESHOLD})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the verdicts; the last line is JSON. 1 where a case regressed."""
    pairs, alone = matched(read_records(arguments.a), read_records(arguments.b))
    if not pairs:
        raise UserError(f"{arguments.a} and {arguments.b} have no case with step times in common: nothing to compare")
    verdicts = [judge(a, b, arguments.threshold) for a, b in pairs]
    print_verdicts(report_console(), verdicts, alone)
    print(json.dumps({"verdicts": [asdict(verdict) for verdict in verdicts], "not_compared": alone}))
    return 1 if any(verdict.outcome == "regressed" for verdict in verdicts) else 0


def matched(left: Sequence[Record], right: Sequence[Record]) -> tuple[list[tuple[Record, Record]], dict[str, str]]:
    """Cases that both measured under the same conditions, and the others with the reason why not."""
    ours, theirs = ({(r.suite, r.case): r for r in records} for records in (left, right))
    pairs, alone = [], {}
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        reason = "only in B" if a is None else "only in A" if b is None else hindrance(a, b)
        if reason is not None:
            alone[" ".join(key)] = reason
        elif a is not None and b is not None:
            pairs.append((a, b))
    return pairs, alone


def hindrance(a: Record, b: Record) -> str | None:
    """Why two records of a case say nothing about each other; None: they do."""
    if a.config != b.config or a.warmup != b.warmup:
        return "measured with another configuration"
    if any(a.hardware.get(part) != b.hardware.get(part) for part in ("cpu", "cores", "gpus")):
        return "measured on another machine"
    if not any(a.measured_seconds()) or not any(b.measured_seconds()):
        return "no step times"
    return None


def print_verdicts(console: Console, verdicts: Sequence[Verdict], alone: dict[str, str]) -> None:
    table = Table("case", "verdict", title="B against A")
    for column in ("time of a step", f"{CONFIDENCE:.0%} interval", "runs A, B", "in turn"):
        table.add_column(column, justify="right")
    for verdict in verdicts:
        change, interval = f"{verdict.ratio - 1:+.1%}", f"{verdict.low - 1:+.1%} to {verdict.high - 1:+.1%}"
        runs = f"{verdict.runs[0]}, {verdict.runs[1]}"
        table.add_row(verdict.case, verdict.outcome, change, interval, runs, "yes" if verdict.paired else "no")
    console.print(table)
    for case, reason in alone.items():
        console.print(f"{case}: not compared, {reason}", highlight=False)
    if any(min(verdict.runs) < FEW_RUNS for verdict in verdicts):
        console.print(f"Fewer than {FEW_RUNS} runs of a case do not show how much processes differ: use --repeat.")
    if not all(verdict.paired for verdict in verdicts):
        console.print("Runs not taken in turn may differ by what else the machine did: see --help.")
