"""What the raw step times and losses say: rates, quantiles, parity and ratios. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gemfleet.benchmarks.shared.record import Run, median, spread

LOSS_TOLERANCE = 0.005
REFERENCE = "plain"
Counts = Sequence[int]
Losses = Sequence[float]


@dataclass(frozen=True)
class Parity:
    """How far losses are from the reference's, as shares of it. Means decide: single steps of a bf16 run wander."""

    per_step: tuple[float, ...]
    mean_loss: float
    mean_difference: float

    @property
    def holds(self) -> bool:
        """False also for losses that are not numbers."""
        return self.mean_difference <= LOSS_TOLERANCE


@dataclass(frozen=True)
class Summary:
    """All repeats of one contender. Rates are non-pad tokens per second of a step; seconds are per step."""

    contender: str
    tokens_per_second: Mapping[str, float]
    supervised_tokens_per_second: float
    step_seconds: Mapping[str, float]
    peak_rss_bytes: int
    parity: Parity | None
    errors: tuple[str, ...]

    @property
    def counts(self) -> bool:
        """Whether the figures stand for the same training: all repeats ended, and their losses are the reference's."""
        return not self.errors and (self.parity is None or self.parity.holds)


def loss_parity(losses: Sequence[float], reference: Sequence[float]) -> Parity:
    """Both sequences hold the mean loss of the same examples at the same step. ValueError if their lengths differ."""
    per_step = tuple(abs(ours - theirs) / abs(theirs) for ours, theirs in zip(losses, reference, strict=True))
    mean, reference_mean = math.fsum(losses) / len(losses), math.fsum(reference) / len(reference)
    return Parity(per_step, mean, abs(mean - reference_mean) / abs(reference_mean))


def summarise(
    contender: str, runs: Sequence[Run], warmup: int, tokens: Counts, supervised: Counts, reference: Losses | None
) -> Summary:
    """Put the measured steps of all repeats together.

    tokens, supervised: non-pad tokens and targets of each step, warm-up included; the same for every contender, so that
    padding or repacking never counts as work done. reference: losses of the reference contender, None without one.
    """
    done = [run for run in runs if run.error is None]
    steps = [(i, seconds) for run in done for i, seconds in enumerate(run.step_seconds) if i >= warmup]
    # Every repeat trains the same; the one farthest off speaks for the contender (not a number: farther than any).
    apart = [loss_parity(run.losses, reference) for run in done] if reference is not None else []
    return Summary(
        contender,
        spread([tokens[i] / seconds for i, seconds in steps]),
        median([supervised[i] / seconds for i, seconds in steps]),
        spread([seconds for _, seconds in steps]),
        max((int(run.facts["peak_rss_bytes"]) for run in done), default=0),
        max(apart, key=lambda p: p.mean_difference if p.mean_difference < math.inf else math.inf, default=None),
        tuple(run.error for run in runs if run.error is not None),
    )


def speed_ratios(summaries: Sequence[Summary], baseline: str | None) -> dict[str, float]:
    """Median tokens/s of each contender that counts over the baseline's; empty without a baseline that counts."""
    rates = {s.contender: s.tokens_per_second["median"] for s in summaries if s.counts}
    return {name: rate / rates[baseline] for name, rate in rates.items()} if baseline in rates else {}


def fastest(summaries: Sequence[Summary], prefix: str) -> str | None:
    """The fastest contender that counts among those whose name starts with `prefix`."""
    rates = {s.contender: s.tokens_per_second["median"] for s in summaries if s.counts}
    return max((name for name in rates if name.startswith(prefix)), key=rates.__getitem__, default=None)
