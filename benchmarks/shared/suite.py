"""What a suite is: a subclass of `Suite` in `<suite>/suite.py`, whose one instance there is called `SUITE`.

It names its cases, measures one of them, and describes its records in a `Section`. Options, rounds, resuming, records,
tables and the exit code are the same for all and are here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from gemfleet.train.errors import UserError
from rich.console import Console

from .measuring import Case, Measure, Tick, measure_all
from .record import Record, Run, write_case
from .section import Section, markdown, plain_section, print_section

__all__ = ["Add", "Case", "Measure", "Options", "Record", "Run", "Suite", "Tick", "names", "numbers", "positive"]
Options = argparse.Namespace
Add = Callable[..., Any]  # `add_argument` of a suite's own options
OUT = Path("bench-results")
REPORT_WIDTH = 140  # columns of a table in a log file; a terminal has its own width


class Suite:
    """repeats: rounds unless --repeat says otherwise; quick: values of its own options under --quick."""

    name: str
    repeats = 3
    quick: Mapping[str, Any] = {}

    def add_options(self, add: Add) -> None:
        """Its own options."""

    def cases(self, options: Options) -> Sequence[Case]:
        """What is to be measured. Raises UserError for a value that there is not."""
        raise NotImplementedError

    def measuring(self, options: Options) -> AbstractContextManager[Measure]:
        """The function that measures one case, while what all cases share is up."""
        return nullcontext(partial(self.measure, options))

    def measure(self, options: Options, case: Case, run: Run, tick: Tick) -> None:
        """Fill in the run of one case. A UserError is why it failed."""
        raise NotImplementedError

    def results(self, record: Record) -> dict[str, Any]:
        """Figures of a case's runs, of which at least one ended well."""
        return dict(record.good_runs[-1].facts)

    def side_by_side(self, records: list[Record]) -> list[Record]:
        """The records with what can be said only beside the other cases."""
        return records

    def section(self, records: Sequence[Record]) -> Section:
        """What the records say. Not all of them need be of one run of the suite."""
        return plain_section(records)

    def misses(self, records: Sequence[Record]) -> list[str]:
        """A sentence for each figure that is not what it has to be."""
        return []

    def summary(self, records: Sequence[Record]) -> dict[str, Any]:
        """What a script wants to know, for the last line printed."""
        return {"results": {record.case: record.results for record in records}}

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The options of `gemfleet bench SUITE`."""
        own, out = parser.add_argument_group(f"options of {self.name}"), OUT / self.name
        self.add_options(own.add_argument)
        add = parser.add_argument_group("options of every suite").add_argument
        rounds = f"rounds; cases take turns (default: {self.repeats})"
        add("--repeat", type=positive, default=self.repeats, metavar="N", help=rounds)
        add("--quick", action="store_true", help="the least that shows it works: a check, no claim")
        add("--out", type=Path, default=out, metavar="DIR", help=f"folder of records (default: {out})")
        add("--again", action="store_true", help="measure anew what has a record already")

    def run(self, options: Options) -> int:
        """Measure, print tables, write records and `<suite>.md`; the last line is JSON. 1: a run or a figure failed."""
        if options.quick:
            vars(options).update(self.quick, repeat=1)
        console, cases = report_console(), self.cases(options)
        records = measure_all(self.name, cases, lambda: self.measuring(options), self.results, options, console)
        records = self.side_by_side(records)
        for record in records:
            write_case(record, options.out)
        failed = [f"{r.case}, round {run.repeat + 1}: {run.error}" for r in records for run in r.runs if run.error]
        section, wrong = self.section(records), [*failed, *self.misses(records)]
        print_section(console, section)
        for sentence in wrong:
            console.print(sentence, highlight=False)
        text = "\n".join([markdown(section), *(f"- {sentence}" for sentence in wrong)])
        (options.out / f"{self.name}.md").write_text(text, encoding="utf-8")
        print(json.dumps({"suite": self.name, "records": str(options.out), **self.summary(records)}))
        return 1 if wrong else 0


def report_console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=REPORT_WIDTH)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def names(option: str, text: str, known: Sequence[str]) -> list[str]:
    """Names with commas between, each once. Raises UserError for one that is not known."""
    found = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    wrong = [name for name in found if name not in known]
    if wrong or not found:
        raise UserError(f"{option} has {', '.join(wrong) or 'no name'}; choose from: {', '.join(known)}")
    return found


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers above 0 with commas between, each once. Raises UserError for any other."""
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found or not all(part.isdigit() and int(part) > 0 for part in found):
        raise UserError(f"{option} is {text!r}; give whole numbers above 0 with commas between")
    return [int(part) for part in found]
