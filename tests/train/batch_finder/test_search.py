"""The decisions of the batch finder: pure, so checked against every line and every noise that hypothesis thinks of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from gemfleet.train.batch_finder.choice import Candidate, choose, sizes_to_time, useful_rows
from gemfleet.train.batch_finder.finder import Found, Variant, find_batch
from gemfleet.train.batch_finder.probes.trial import Failure, RankMeasure, Trial
from gemfleet.train.batch_finder.report import found_sentences, table, trial_facts, trial_line
from gemfleet.train.batch_finder.search import MAX_MEMORY_TRIALS, largest_fit, next_rows
from gemfleet.train.batch_finder.variant_search import ProbeError, SearchLimits
from gemfleet.train.errors import UserError
from hypothesis import given
from hypothesis import strategies as st

MIB = 2**20


def measured(rows: int, peaks: list[int], limits: list[int], seconds: float = 1.0) -> Trial:
    pairs = enumerate(zip(peaks, limits, strict=True))
    return Trial(rows, tuple(RankMeasure(i, f"host-{i}", peak, limit, seconds) for i, (peak, limit) in pairs))


def search(machine: Callable[[int], Trial], ceiling: int) -> list[Trial]:
    trials: list[Trial] = []
    while (rows := next_rows(trials, ceiling)) is not None:
        assert 1 <= rows <= ceiling
        assert rows not in [trial.rows for trial in trials]
        trials.append(machine(rows))
    return trials


lines = st.tuples(st.integers(100, 60_000), st.integers(1, 9_000), st.integers(0, 80_000))


@given(st.lists(lines, min_size=1, max_size=4), st.integers(1, 200))
def test_an_affine_memory_is_searched_exactly_and_in_few_trials(ranks: list[tuple[int, int, int]], top: int) -> None:
    def machine(rows: int) -> Trial:
        peaks = [(base + slope * rows) * MIB for base, slope, _ in ranks]
        return measured(rows, peaks, [limit * MIB for *_, limit in ranks])

    trials = search(machine, top)
    assert len(trials) <= MAX_MEMORY_TRIALS
    truth = max(0, min(min((limit - base) // slope for base, slope, limit in ranks), top))
    assert largest_fit(trials) == truth


@given(lines, st.integers(1, 300), st.lists(st.floats(-0.06, 0.06), min_size=7, max_size=7), st.booleans())
def test_noise_and_sudden_ends_never_yield_a_size_that_was_refused(
    line: tuple[int, int, int], top: int, noise: list[float], killed: bool
) -> None:
    base, slope, limit = line

    def machine(rows: int) -> Trial:
        peak = int((base + slope * rows) * (1 + noise[rows % 7])) * MIB
        if killed and peak > limit * MIB:
            return Trial(rows, failure=Failure.MEMORY)
        return measured(rows, [peak], [limit * MIB])

    trials = search(machine, top)
    assert len(trials) <= MAX_MEMORY_TRIALS
    found = largest_fit(trials)
    assert found == 0 or machine(found).fits
    assert found > 0 or not machine(1).fits
    assert all(trial.rows > found for trial in trials if not trial.fits)


def test_a_prediction_that_fails_is_bisected() -> None:
    def machine(rows: int) -> Trial:
        return measured(rows, [rows * MIB], [100 * MIB]) if rows <= 20 else Trial(rows, failure=Failure.MEMORY)

    assert [trial.rows for trial in search(machine, 1000)] == [1, 2, 32, 17, 24, 20]


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(1, 1e6)), min_size=1, max_size=9))
def test_the_choice_is_the_smallest_size_near_the_best(sizes: list[tuple[int, float]]) -> None:
    candidates = [Candidate("ddp", rows, speed, 0) for rows, speed in sizes]
    chosen = choose(candidates)
    best = max(c.speed for c in candidates)
    assert chosen.speed >= 0.98 * best
    assert all(c.rows >= chosen.rows for c in candidates if c.speed >= 0.98 * best)


@given(st.floats(0, 0.15), st.floats(-0.03, 0.03))
def test_little_is_lost_by_not_trying_more(overhead: float, noise: float) -> None:
    useful = useful_rows({1: (1 + overhead) * (1 + noise), 2: 2 + overhead})
    assert (useful / (useful + overhead)) >= 0.97


def test_where_time_does_not_grow_everything_is_useful() -> None:
    assert useful_rows({1: 1.0, 2: 1.0}) > 1000
    assert useful_rows({1: 1.0, 2: 1.5}) == 100
    assert useful_rows({1: 1.0, 2: 2.0}) == 5


def test_sizes_to_time() -> None:
    assert [sizes_to_time(n) for n in (1, 2, 13, 16)] == [[1], [1, 2], [1, 2, 4, 8, 13], [1, 2, 4, 8, 16]]


class SimulatedGroup:
    """Ranks whose memory and seconds are formulas; `faults` are answered first, one for each trial of their size.

    row_bytes: of training; an evaluation takes 70 a row. slow_first: how much longer the first trial of each size takes
    """

    def __init__(
        self,
        limits: list[int],
        overhead: float = 0.5,
        faults: dict[int, list[Failure]] | None = None,
        row_bytes: int = 100,
        slow_first: float = 1.0,
    ) -> None:
        self.limits, self.overhead, self.faults = limits, overhead, faults or {}
        self.row_bytes, self.slow_first = row_bytes, slow_first
        self.tried: list[int] = []
        self.evaluated: list[int] = []

    def try_rows(self, rows: int, evaluation: bool = False) -> Trial:
        if evaluation:
            self.evaluated.append(rows)
            fits = all(1000 + 70 * rows <= limit for limit in self.limits)
            failure = None if fits else Failure.MEMORY
            return Trial(rows, failure=failure, message="rank 1 on host-1: too much", evaluation=True)
        slowness = self.slow_first if rows == 2 and rows not in self.tried else 1.0
        self.tried.append(rows)
        if self.faults.get(rows):
            return Trial(rows, failure=self.faults[rows].pop(0), message="rank 1 on host-1: gone")
        peak = 1000 + self.row_bytes * rows
        if any(peak > limit * 1.05 for limit in self.limits):
            return Trial(rows, failure=Failure.MEMORY, message="rank 1 on host-1: too much")
        return measured(rows, [peak] * len(self.limits), self.limits, slowness * (self.overhead + rows))


@contextmanager
def opened(group: SimulatedGroup) -> Iterator[SimulatedGroup]:
    yield group


def found_with(group: SimulatedGroup, largest: int = 64, timeout_s: float = 1e6) -> tuple[int, list[str]]:
    lines: list[str] = []
    limits = SearchLimits(largest, timeout_s)
    found = find_batch(
        [Variant("ddp")], lambda _: opened(group), limits, 100, lambda v, t: lines.append(trial_line(v, t))
    )
    assert found.memory_trials["ddp"] <= MAX_MEMORY_TRIALS
    assert len(lines) == len(group.tried) >= found.trials
    assert "<- chosen" in "\n".join(table(found))
    return found.choice.rows, lines


def test_the_rank_with_least_memory_decides() -> None:
    rows, lines = found_with(SimulatedGroup([10_000, 1850, 10_000]))
    assert rows == 8
    assert any("rank 1 (host-1)" in line for line in lines)


def all_found(
    variants: list[Variant], groups: dict[str, SimulatedGroup], evaluation_rows: int | None = None, largest: int = 64
) -> Found:
    limits = SearchLimits(largest, 1e6, evaluates=True, evaluation_rows=evaluation_rows)
    return find_batch(variants, lambda variant: opened(groups[variant.name]), limits, 100, lambda *_: None)


def test_the_node_with_least_memory_is_named_where_memory_differs() -> None:
    found = all_found([Variant("ddp")], {"ddp": SimulatedGroup([10_000, 1850, 10_000])})
    assert any("rank 1 on host-1 has the least" in line for line in found_sentences(found, None))
    alike = all_found([Variant("ddp")], {"ddp": SimulatedGroup([1850, 1860])})
    assert len(found_sentences(alike, None)) == 1


def test_a_variant_is_tried_only_where_memory_limited_the_one_it_saves_memory_of() -> None:
    variants = [Variant("off"), Variant("selective", if_limited="off"), Variant("never", if_limited="selective")]
    groups = {"off": SimulatedGroup([1850]), "selective": SimulatedGroup([1850], row_bytes=2), "never": None}
    found = all_found(variants, groups)  # type: ignore[arg-type]
    assert {candidate.variant for candidate in found.candidates} == {"off", "selective"}
    assert (found.choice.variant, set(found.memory_trials)) == ("selective", {"off", "selective"})
    roomy = all_found(variants, {"off": SimulatedGroup([100_000])})
    assert set(roomy.memory_trials) == {"off"}


def test_a_variant_without_room_for_one_row_leaves_the_choice_to_the_others() -> None:
    variants = [Variant("whole"), Variant("divided", if_limited="whole")]
    found = all_found(variants, {"whole": SimulatedGroup([900]), "divided": SimulatedGroup([1850])})
    assert (found.choice.variant, found.choice.rows) == ("divided", 8)


@pytest.mark.parametrize(
    ("asked", "tried", "fits"), [(None, [8], 8), (4, [8], 8), (12, [12], 12), (100, [100, 50, 25, 12], 12)]
)
def test_an_evaluation_is_tried_in_the_passes_it_will_have(asked: int | None, tried: list[int], fits: int) -> None:
    group = SimulatedGroup([1850])
    found = all_found([Variant("ddp")], {"ddp": group}, asked)
    assert (group.evaluated, found.evaluation_rows, found.choice.rows) == (tried, fits, 8)
    told = [line for line in found_sentences(found, asked) if "evaluation" in line]
    assert told == (["an evaluation of 100 rows does not fit: it goes in passes of 12"] if asked == 100 else [])


def test_one_disturbed_timing_does_not_end_the_search_early() -> None:
    assert (
        max(
            all_found([Variant("ddp")], {"ddp": SimulatedGroup([10_000], slow_first=1.3)}).candidates,
            key=lambda c: c.rows,
        ).rows
        == 50
    )


def test_the_smallest_of_equal_speeds_is_chosen() -> None:
    rows, _ = found_with(SimulatedGroup([10_000, 10_000]))
    assert rows == 32  # 50 rows are 1.0% faster than 32 and 2.1% than 16


def test_no_larger_than_what_a_step_holds_or_a_trial_has_time_for() -> None:
    group = SimulatedGroup([100_000], overhead=5.0)
    found_with(group, largest=7)
    assert max(group.tried) == 7
    group = SimulatedGroup([100_000], overhead=5.0)
    found_with(group, timeout_s=70.0)
    assert max(group.tried) == 12  # 5 s + 12 s a pass, two passes, within half of the bound


@pytest.mark.parametrize("loss", [Failure.DIED, Failure.SILENT, Failure.ERROR])
@pytest.mark.parametrize("rows", [1, 2, 8])
def test_a_lost_process_changes_no_answer(loss: Failure, rows: int) -> None:
    assert found_with(SimulatedGroup([10_000, 1850]))[0] == 8
    assert found_with(SimulatedGroup([10_000, 1850], faults={rows: [loss]}))[0] == 8


def test_a_process_lost_twice_at_one_size_counts_against_it() -> None:
    assert found_with(SimulatedGroup([1850], faults={8: [Failure.DIED] * 2}))[0] < 8


def test_other_errors_end_the_search() -> None:
    with pytest.raises(ProbeError, match="gone"):
        found_with(SimulatedGroup([1850], faults={2: [Failure.ERROR] * 2}))
    with pytest.raises(UserError, match="gone"):
        found_with(SimulatedGroup([1850], faults={1: [Failure.USER]}))


def test_when_not_one_row_fits_the_error_says_what_to_change() -> None:
    with pytest.raises(UserError, match=r"not one row.*rank 1 on host-1.*train\.data\.max_length"):
        found_with(SimulatedGroup([10_000, 900]))
    with pytest.raises(UserError, match=r"rank 1 on host-1 needs 1100 bytes of 1090"):
        found_with(SimulatedGroup([10_000, 1090]))


def test_facts_of_a_trial_for_programs() -> None:
    facts = trial_facts("ddp", measured(4, [10, 30], [100, 100], 2.5))
    assert (facts["tightest_rank"], facts["peak_bytes"], facts["fits"], facts["pass_seconds"]) == (1, 30, True, 2.5)
    assert trial_facts("ddp", Trial(4, failure=Failure.MEMORY))["failure"] == "memory"
    assert math.isclose(measured(1, [1], [2], 0.25).seconds, 0.25)


@pytest.mark.parametrize(("budget_s", "tried"), [(0.0, {"off"}), (1e9, {"off", "selective"})])
def test_a_search_that_used_its_time_up_takes_the_best_so_far(budget_s: float, tried: set[str]) -> None:
    """The largest size of the first variant is found and timed in any case."""
    seconds = iter(range(10_000))
    variants = [Variant("off"), Variant("selective", if_limited="off")]
    groups = {"off": SimulatedGroup([1850]), "selective": SimulatedGroup([1850], row_bytes=2)}
    limits = SearchLimits(64, 1e6, budget_s=budget_s)
    found = find_batch(
        variants,
        lambda variant: opened(groups[variant.name]),
        limits,
        100,
        lambda *_: None,
        lambda: float(next(seconds)),
    )
    assert {candidate.variant for candidate in found.candidates} == tried
    assert found.cut_short is (budget_s == 0.0)
    assert found.choice.rows in groups[found.choice.variant].tried
    assert any("ended early" in line for line in found_sentences(found, None)) is found.cut_short
    if found.cut_short:
        assert groups["off"].tried == [1, 2, 2, 1, 8]
