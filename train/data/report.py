"""Counts rows: how many were read and used, and which were left out, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..config.data_section import DataConfig
from ..errors import UserError
from .digest import DataDigest
from .tokenizing import LeftOut

NAMED = 3  # so many rows are named for each reason; the rest are counted
UNUSED_NAMED = 12  # columns


@dataclass
class Reason:
    """The number of rows left out for one reason, and the names of the first ones."""

    count: int = 0
    first: list[str] = field(default_factory=list)


@dataclass
class DataReport:
    """Counts over the training data and, if there is any, the evaluation data.

    format: which columns were read, as `train.data.format` names it; empty until the data is opened
    """

    source: str
    format: str = ""
    rows: int = 0
    examples: int = 0
    eval_examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    truncated: int = 0
    left_out: dict[str, Reason] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unused: set[str] = field(default_factory=set)
    digest: DataDigest | None = None

    @property
    def left_out_count(self) -> int:
        return sum(reason.count for reason in self.left_out.values())

    def add_left_out(self, rows: Iterable[LeftOut]) -> None:
        for row in rows:
            reason = self.left_out.setdefault(row.reason, Reason())
            reason.count += 1
            if len(reason.first) < NAMED:
                reason.first.append(f"{row.name} ({row.detail})" if row.detail else row.name)

    def note(self, sentence: str) -> None:
        """Adds a sentence on how the data was opened. An empty one adds nothing."""
        if sentence:
            self.notes.append(sentence)

    def merge(self, other: DataReport) -> None:
        """Adds the counts of another part of the same data set."""
        self.rows += other.rows
        self.truncated += other.truncated
        self.unused |= other.unused
        for name, part in other.left_out.items():
            reason = self.left_out.setdefault(name, Reason())
            reason.count += part.count
            reason.first += part.first[: NAMED - len(reason.first)]

    def summary(self) -> str:
        """The report for a person, in a few sentences."""
        parts = [
            f"{self.source}: {self.rows:,} rows read, {self.examples:,} examples to train on "
            f"and {self.eval_examples:,} to evaluate on, {self.tokens:,} tokens, "
            f"{self.supervised_tokens:,} of them supervised."
        ]
        if self.truncated:
            parts.append(f"{self.truncated:,} were cut off at max_length.")
        if self.left_out:
            parts.append(f"{self.left_out_count:,} rows were left out: {self.reasons()}.")
        return " ".join([*parts, *self._asides()])

    def _asides(self) -> list[str]:
        named = ", ".join(sorted(self.unused)[:UNUSED_NAMED]) + (", …" if len(self.unused) > UNUSED_NAMED else "")
        return [*self.notes, *([f"Not used of the rows: {named}."] if self.unused else [])]

    def aside(self) -> str:
        """What the training data's report says about this evaluation set; empty if there is nothing to say."""
        left_out = f"{self.left_out_count:,} rows were left out: {self.reasons()}." if self.left_out else ""
        said = " ".join(part for part in (left_out, *self._asides()) if part)
        return f"Evaluation set {self.source}: {said}" if said else ""

    def reasons(self) -> str:
        """Each reason with its count and first rows, the most frequent first."""
        ordered = sorted(self.left_out.items(), key=lambda item: (-item[1].count, item[0]))
        return "; ".join(
            f"{reason.count:,} {name} ({', '.join(reason.first)}{', …' if reason.count > len(reason.first) else ''})"
            for name, reason in ordered
        )

    def check(self, data: DataConfig) -> None:
        """Raises UserError if no row is left, or if a row was left out under `bad_rows: fail`."""
        if self.left_out and data.bad_rows == "fail":
            raise UserError(
                f"{self.left_out_count:,} of {self.rows:,} rows of {self.source} cannot be used: {self.reasons()}; "
                "mend them, or set train.data.bad_rows: skip"
            )
        if not self.examples:
            too_long = any(name.startswith("longer than") for name in self.left_out)
            remedy = (
                "raise train.data.max_length or set train.data.too_long: truncate" if too_long else "mend the data set"
            )
            raise UserError(f"all {self.rows:,} rows of {self.source} were left out: {self.reasons()}; {remedy}")
