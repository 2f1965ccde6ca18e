"""Whether one case's steps take longer in B than in A, by a bootstrap over raw step times. Pure functions.

Processes differ more than the steps of one process, so runs are drawn first and steps inside them second (a two-level
bootstrap, Efron & Tibshirani 1993). Where the runs of A and B were taken in turn, each is compared with its neighbour
of the same round: what slows the machine for a while slows both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from gemfleet.benchmarks.shared.record import Record
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Outcome = Literal["regressed", "improved", "noise"]
DRAWS = 4000
CONFIDENCE = 0.95
THRESHOLD = 0.03  # less than this is called noise however sure it is


@dataclass(frozen=True)
class Verdict:
    """ratio: time of a step in B over A's, above 1 where B is slower; low, high: its confidence interval.

    paired: whether runs were taken in turn; runs: of A and B
    """

    case: str
    outcome: Outcome
    ratio: float
    low: float
    high: float
    paired: bool
    runs: tuple[int, int]


def judge(a: Record, b: Record, threshold: float = THRESHOLD, seed: int = 0) -> Verdict:
    """Both records hold at least one good run with measured steps."""
    steps_a, steps_b = _costs(a), _costs(b)
    paired = taken_in_turn(a, b)
    draw = np.random.default_rng(seed)
    if paired:
        repeats = sorted(steps_a)
        center = float(np.mean([_log(steps_b[repeat]) - _log(steps_a[repeat]) for repeat in repeats]))
        logs = _mean_of_runs(
            np.array([_drawn_logs(steps_b[repeat], draw) - _drawn_logs(steps_a[repeat], draw) for repeat in repeats]),
            draw,
        )
    else:
        sides = [np.array([_log(steps) for steps in side.values()]) for side in (steps_a, steps_b)]
        center = float(np.mean(sides[1]) - np.mean(sides[0]))
        drawn = [np.array([_drawn_logs(steps, draw) for steps in side.values()]) for side in (steps_a, steps_b)]
        logs = _mean_of_runs(drawn[1], draw) - _mean_of_runs(drawn[0], draw)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = (float(np.exp(edge)) for edge in np.percentile(logs, [tail, 100 - tail]))
    ratio = float(np.exp(center))
    outcome = outcome_of(ratio, low, high, threshold)
    return Verdict(f"{a.suite} {a.case}", outcome, ratio, low, high, paired, (len(steps_a), len(steps_b)))


def outcome_of(ratio: float, low: float, high: float, threshold: float) -> Outcome:
    """Sure of its sign, and large enough to matter."""
    if low > 1 and ratio > 1 + threshold:
        return "regressed"
    if high < 1 and ratio < 1 / (1 + threshold):
        return "improved"
    return "noise"


def taken_in_turn(a: Record, b: Record) -> bool:
    """Whether both have the same two rounds or more, and each round of one lies in time beside that of the other."""
    order = sorted((run.started_at, run.repeat, side) for side, r in enumerate((a, b)) for run in r.good_runs)
    couples = list(zip(order[0::2], order[1::2], strict=False))
    whole = len(order) % 2 == 0 and len(couples) >= 2 and all(started for started, _, _ in order)
    return whole and all(x[1] == y[1] and x[2] != y[2] for x, y in couples)


def _costs(record: Record) -> dict[int, Floats]:
    """By round: seconds a token of each measured step, or seconds where a case has no tokens."""
    found = {}
    for run in record.good_runs:
        seconds = np.asarray(run.step_seconds[record.warmup :], np.float64)
        tokens = np.asarray(run.tokens[record.warmup :], np.float64) if run.tokens else np.ones(len(seconds))
        found[run.repeat] = seconds / tokens
    return found


def _log(steps: Floats) -> float:
    """The median stands for a run: single steps that something else held up do not move it."""
    return float(np.log(np.median(steps)))


def _drawn_logs(steps: Floats, draw: np.random.Generator) -> Floats:
    """The same of `DRAWS` samples of the run's steps, drawn with replacement."""
    chosen = draw.integers(0, len(steps), (DRAWS, len(steps)))
    return np.asarray(np.log(np.median(steps[chosen], axis=1)), np.float64)


def _mean_of_runs(values: Floats, draw: np.random.Generator) -> Floats:
    """values: [runs, DRAWS]. For each draw the mean over as many runs, drawn with replacement."""
    runs, draws = values.shape
    chosen = draw.integers(0, runs, (runs, draws))
    return np.asarray(np.take_along_axis(values, chosen, axis=0).mean(axis=0), np.float64)
