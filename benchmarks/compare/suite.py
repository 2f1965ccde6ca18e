"""Compare the records of two builds case by case: regressed, improved, or noise, with a confidence interval.

For a verdict to be worth something, take both builds' runs in turn on one machine: `--repeat N` only adds the rounds
that are missing, so give each build its own --out and call both with --repeat 1, then 2, and so on.

  gemfleet bench compare results/old results/new
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from gemfleet.benchmarks.shared.record import read_records
from gemfleet.benchmarks.shared.section import Section, Table, print_section
from gemfleet.benchmarks.shared.suite import Record, report_console
from gemfleet.train.errors import UserError

from .statistics import CONFIDENCE, THRESHOLD, Verdict, judge

FEW_RUNS = 3
COLUMNS = ("case", "verdict", "time of a step", f"{CONFIDENCE:.0%} interval", "runs A, B", "in turn")


class Compare:
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("a", type=Path, metavar="A", help="records of the build to compare with: a folder or a file")
        add("b", type=Path, metavar="B", help="records of the new build")
        share = f"a change below this share is noise, however sure it is (default: {THRESHOLD})"
        add("--threshold", type=float, default=THRESHOLD, help=share)

    def run(self, options: argparse.Namespace) -> int:
        """Print the verdicts; the last line is JSON. 1 where a case regressed."""
        pairs, alone = matched(read_records(options.a), read_records(options.b))
        if not pairs:
            raise UserError(f"{options.a} and {options.b} have no case with step times in common: nothing to compare")
        verdicts = [judge(a, b, options.threshold) for a, b in pairs]
        table = Table(COLUMNS, [verdict.cells() for verdict in verdicts])
        print_section(report_console(), Section("B against A", "", [table], notes=notes(verdicts, alone)))
        print(json.dumps({"verdicts": [verdict._asdict() for verdict in verdicts], "not_compared": alone}))
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


def notes(verdicts: Sequence[Verdict], alone: dict[str, str]) -> list[str]:
    found = [f"{case}: not compared, {reason}" for case, reason in alone.items()]
    if any(min(verdict.runs) < FEW_RUNS for verdict in verdicts):
        found.append(f"Fewer than {FEW_RUNS} runs of a case do not show how much processes differ: use --repeat.")
    if not all(verdict.paired for verdict in verdicts):
        found.append("Runs not taken in turn may differ by what else the machine did: see --help.")
    return found


SUITE = Compare()
