"""Counts rows: how many were read and used, and which were left out, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..config.sections.data import DataConfig, DataSet
from ..errors import UserError
from .digest import DataDigest
from .packing import Ints
from .tokenizing import LeftOut, Tokenised

NAMED = 3  # so many rows are named for each reason; the rest are counted
UNUSED_NAMED = 12  # columns


@dataclass
class Reason:
    """The number of rows left out for one reason, and the names of the first ones."""

    count: int = 0
    first: list[str] = field(default_factory=list)


@dataclass
class DataReport:
    """Counts over one data set, or over all that a run trains on.

    format: which columns were read, as `train.data.format` names it; empty until the data is opened
    name: of one of several sets; share: what the configuration gives it of every epoch
    repeats: how often an epoch has each of its examples, on average
    sets, eval_sets: the sets of a run, where there are several
    """

    source: str
    format: str = ""
    name: str = ""
    rows: int = 0
    examples: int = 0
    eval_examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    pictures: int = 0
    truncated: int = 0
    share: float | None = None
    repeats: float = 1.0
    left_out: dict[str, Reason] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unused: set[str] = field(default_factory=set)
    sets: list[DataReport] = field(default_factory=list)
    eval_sets: list[DataReport] = field(default_factory=list)
    digest: DataDigest | None = None

    @staticmethod
    def of_set(data: DataSet) -> DataReport:
        """An empty report of one data set."""
        return DataReport(data.path, name=data.name, share=data.share)

    @staticmethod
    def of_run(source: str, sets: Sequence[DataReport], eval_sets: Sequence[DataReport]) -> DataReport:
        """The report of a run. source: what all its sets are called; sets: to train on; eval_sets: of `train.data.eval`

        The report of a single set has no parts.
        """
        whole = DataReport(source, sets[0].format)
        for part in sets:
            whole.merge(part)
            whole.examples += part.examples
            whole.eval_examples += part.eval_examples
            whole.tokens += part.tokens
            whole.supervised_tokens += part.supervised_tokens
            whole.pictures += part.pictures
        whole.sets = list(sets) if len(sets) > 1 else []
        whole.eval_sets = list(eval_sets) if len(eval_sets) > 1 else []
        whole.notes = [*(sets[0].notes if len(sets) == 1 else []), *filter(None, (one.aside() for one in eval_sets))]
        whole.eval_examples += sum(one.examples for one in eval_sets)
        return whole

    def use(self, train: Ints, eval_examples: int, epoch_examples: int) -> None:
        """Counts what of the set is used.

        train: of each example to train on, see `count`
        eval_examples: those that are held out; epoch_examples: those that an epoch has of this set
        """
        self.count(train)
        self.eval_examples = eval_examples
        self.repeats = epoch_examples / len(train)

    def count(self, examples: Ints) -> None:
        """Counts usable examples. examples: tokens, supervised tokens and pictures of each, int64 [N, 3]"""
        self.examples = len(examples)
        self.tokens, self.supervised_tokens, self.pictures = examples.sum(axis=0).tolist()

    def add(self, done: Tokenised, rows: int) -> None:
        """Adds a batch of rows by what became of them. rows: how many they were"""
        self.rows += rows
        self.truncated += done.truncated
        self.unused |= done.unused
        self.add_left_out(done.left_out)

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
        """Adds the counts of rows of another part of the data."""
        self.rows += other.rows
        self.truncated += other.truncated
        self.unused |= other.unused
        for name, part in other.left_out.items():
            reason = self.left_out.setdefault(name, Reason())
            reason.count += part.count
            reason.first += part.first[: NAMED - len(reason.first)]

    def summary(self) -> str:
        """The report for a person, in a few sentences; a line for each set where there are several."""
        parts = [
            f"{self.source}: {self.rows:,} rows read, {self.examples:,} examples to train on "
            f"and {self.eval_examples:,} to evaluate on, {self.tokens:,} tokens, "
            f"{self.supervised_tokens:,} of them supervised{f', {self.pictures:,} pictures' if self.pictures else ''}."
        ]
        if self.truncated:
            parts.append(f"{self.truncated:,} were cut off at max_length.")
        if self.left_out:
            why = "." if self.sets else f": {self.reasons()}."  # the sets say why
            parts.append(f"{self.left_out_count:,} rows were left out{why}")
        lines = [" ".join([*parts, *self._asides()])]
        lines += [f"- {one.name}: {one._in_an_epoch()}{one.summary()}" for one in self.sets]
        lines += [f"- evaluation set {one.name}: {one.source}, {one.examples:,} examples." for one in self.eval_sets]
        return "\n".join(lines)

    def _in_an_epoch(self) -> str:
        if self.share is None:
            return ""
        return f"{self.share:.1%} of an epoch, each example {self.repeats:.3g} times; "

    def _asides(self) -> list[str]:
        if self.sets:  # they say it themselves
            return self.notes
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
