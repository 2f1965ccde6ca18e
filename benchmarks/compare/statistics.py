"""Whether one case's steps take longer in B than in A, by a bootstrap over raw step times. Pure functions.

Processes differ more than the steps of one process, so runs are drawn first and steps inside them second (a two-level
bootstrap, Efron & Tibshirani 1993). Where the runs of A and B were taken in turn, each is compared with its neighbour
of the same round: what slows the machine for a while slows both.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from gemfleet.benchmarks.shared.record import Record
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Outcome = Literal["regressed", "improved", "noise"]
DRAWS = 4000
CONFIDENCE = 0.95
THRESHOLD = 0.03  # less than this is called noise however sure it is


class Verdict(NamedTuple):
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

    def cells(self) -> list[str]:
        change, interval = f"{self.ratio - 1:+.1%}", f"{self.low - 1:+.1%} to {self.high - 1:+.1%}"
        return [self.case, self.outcome, change, interval, "{}, {}".format(*self.runs), "yes" if self.paired else "no"]


def judge(a: Record, b: Record, threshold: float = THRESHOLD, seed: int = 0) -> Verdict:
    """Both records hold at least one good run with measured steps."""
    random, paired = np.random.default_rng(seed), taken_in_turn(a, b)
    (whole_a, drawn_a), (whole_b, drawn_b) = (_logs(record, random) for record in (a, b))
    if paired:
        logs = _mean_of_runs(drawn_b - drawn_a, random)
    else:
        logs = _mean_of_runs(drawn_b, random) - _mean_of_runs(drawn_a, random)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = (float(np.exp(edge)) for edge in np.percentile(logs, [tail, 100 - tail]))
    ratio, runs = float(np.exp(whole_b.mean() - whole_a.mean())), (len(whole_a), len(whole_b))
    outcome: Outcome = "noise"  # unless it is sure of its sign, and large enough to matter
    if low > 1 and ratio > 1 + threshold:
        outcome = "regressed"
    elif high < 1 and ratio < 1 / (1 + threshold):
        outcome = "improved"
    return Verdict(f"{a.suite} {a.case}", outcome, ratio, low, high, paired, runs)


def taken_in_turn(a: Record, b: Record) -> bool:
    """Whether both have the same two rounds or more, and each round of one lies in time beside that of the other."""
    order = sorted((run.started_at, run.repeat, side) for side, r in enumerate((a, b)) for run in r.good_runs)
    couples = list(zip(order[0::2], order[1::2], strict=False))
    whole = len(order) % 2 == 0 and len(couples) >= 2 and all(started for started, _, _ in order)
    return whole and all(x[1] == y[1] and x[2] != y[2] for x, y in couples)


def _logs(record: Record, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Of each run, by rounds, the log of the seconds a token of its median step [runs], or the seconds where a case has
    no tokens; and the same of `DRAWS` samples of its steps, drawn with replacement [runs, DRAWS]. The median stands for
    a run: single steps that something else held up do not move it."""
    whole, drawn = [], []
    for run in sorted(record.good_runs, key=lambda run: run.repeat):
        seconds = np.asarray(run.step_seconds[record.warmup :], np.float64)
        costs = seconds / np.asarray(run.tokens[record.warmup :], np.float64) if run.tokens else seconds
        whole.append(np.log(np.median(costs)))
        drawn.append(np.log(np.median(costs[random.integers(0, len(costs), (DRAWS, len(costs)))], axis=1)))
    return np.asarray(whole, np.float64), np.asarray(drawn, np.float64)


def _mean_of_runs(values: Floats, random: np.random.Generator) -> Floats:
    """values: [runs, DRAWS]. For each draw the mean over as many runs, drawn with replacement."""
    chosen = random.integers(0, len(values), values.shape)
    return np.asarray(np.take_along_axis(values, chosen, axis=0).mean(axis=0), np.float64)
