"""Counting tokens, comparing losses and forming ratios: what the comparison claims rests on these."""

from __future__ import annotations

import math

import pytest
from gemfleet.benchmarks.peers.data import (
    QUESTIONS,
    Example,
    batch_supervised_tokens,
    batch_tokens,
    choose_batches,
    long_texts,
    padded_tokens,
    token_statistics,
    tokenise,
)
from gemfleet.benchmarks.peers.stats import fastest, loss_parity, speed_ratios, summarise
from gemfleet.benchmarks.shared.record import Run, quantile
from gemfleet.train.errors import UserError


class CharacterTokenizer:
    """One token a character, a begin token in front: enough to see where prompts end."""

    eos_token = "$"

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1] + [ord(character) for character in text]}


def example(length: int, supervised_from: int) -> Example:
    return Example("", "", tuple(range(3, 3 + length)), supervised_from)


def outcome(repeat: int, seconds: list[float], losses: list[float], error: str | None = None) -> Run:
    facts = {"peak_rss_bytes": 2**30}
    return Run(repeat=repeat, started_at="", step_seconds=seconds, losses=losses, facts=facts, error=error)


def test_targets_are_the_completion_and_the_end_token() -> None:
    made = tokenise(CharacterTokenizer(), "ab", "cde")
    assert made.input_ids == (1, ord("a"), ord("b"), ord("c"), ord("d"), ord("e"), ord("$"))
    assert made.tokens == 7
    assert made.supervised_tokens == 4
    assert made.labels == [-100, -100, -100, ord("c"), ord("d"), ord("e"), ord("$")]


def test_first_token_is_never_a_target() -> None:
    bare = example(length=5, supervised_from=0)
    assert bare.supervised_tokens == 4
    assert bare.labels == [-100, 4, 5, 6, 7]


def test_padding_counts_nowhere() -> None:
    batch = (example(10, 6), example(4, 1))
    assert batch_tokens(batch) == 14
    assert batch_supervised_tokens(batch) == 4 + 3
    assert padded_tokens(batch) == 20
    statistics = token_statistics([batch])
    assert statistics["supervised_share"] == 0.5
    assert statistics["padding_share_when_padded"] == pytest.approx(0.3)
    assert statistics["tokens_per_example_max"] == 10


def test_batches_are_fixed_by_the_seed_and_share_no_example() -> None:
    examples = [example(5 + i, 2) for i in range(20)]
    batches = choose_batches(examples, 4, 5, seed=7)
    assert batches == choose_batches(examples, 4, 5, seed=7)
    assert batches != choose_batches(examples, 4, 5, seed=8)
    assert sorted(e.tokens for batch in batches for e in batch) == [e.tokens for e in examples]


def test_long_texts_have_typical_lengths_and_share_no_row() -> None:
    rows = [(f"q{i}?", f"a{i}." + " word" * (i % 30)) for i in range(2000)]
    texts = long_texts(rows, lambda text: len(text.split()), seed=3)
    assert texts == long_texts(rows, lambda text: len(text.split()), seed=3)
    lengths = [len(answer.split()) for _, answer in texts]
    assert 165 < sum(lengths) / len(lengths) < 210
    assert min(lengths) < 120
    assert max(lengths) > 300
    answers = [word for _, answer in texts for word in answer.split() if word.startswith("a")]
    assert len(answers) == len(set(answers)) > 1900
    assert all(len(question.split()) == QUESTIONS for question, _ in texts)


def test_too_few_examples_is_a_sentence_with_both_numbers() -> None:
    with pytest.raises(UserError, match=r"24 examples.*holds 20"):
        choose_batches([example(5, 2)] * 20, 4, 6, seed=0)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.5), (0.9, 3.7), (1.0, 4.0)])
def test_quantile_interpolates(share: float, expected: float) -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], share) == pytest.approx(expected)


def test_parity_is_decided_by_the_mean_not_by_one_step() -> None:
    parity = loss_parity([2.04, 1.96], [2.0, 2.0])
    assert parity.per_step == pytest.approx((0.02, 0.02))
    assert parity.mean_difference == pytest.approx(0.0, abs=1e-12)
    assert parity.holds
    assert not loss_parity([2.03, 2.03], [2.0, 2.0]).holds
    assert not loss_parity([math.nan, 2.0], [2.0, 2.0]).holds


def test_parity_needs_the_same_steps() -> None:
    with pytest.raises(ValueError, match="argument"):
        loss_parity([2.0], [2.0, 2.0])


def test_rates_leave_warm_up_out_and_pair_each_step_with_its_own_tokens() -> None:
    runs = [
        outcome(0, [9.0, 1.0, 2.0], [3.0, 2.0, 1.0]),
        outcome(1, [9.0, 2.0, 4.0], [3.0, 2.0, 1.0]),
    ]
    summary = summarise("gemfleet", runs, 1, tokens=(50, 100, 400), supervised=(5, 10, 40), reference=(3.0, 2.0, 1.0))
    # 100/1, 400/2, 100/2, 400/4
    assert summary.tokens_per_second["median"] == pytest.approx(100.0)
    assert summary.tokens_per_second["p10"] == pytest.approx(65.0)
    assert summary.supervised_tokens_per_second == pytest.approx(10.0)
    assert summary.step_seconds["median"] == pytest.approx(2.0)
    assert summary.counts


def test_a_repeat_with_other_losses_keeps_the_contender_from_counting() -> None:
    reference = (2.0, 2.0)
    runs = [outcome(0, [1.0, 1.0], [2.0, 2.0]), outcome(1, [1.0, 1.0], [2.0, 2.1])]
    summary = summarise("a", runs, 1, (10, 10), (5, 5), reference)
    assert summary.parity is not None
    assert summary.parity.mean_difference == pytest.approx(0.025)
    assert not summary.counts
    assert speed_ratios([summary], "a") == {}


def test_ratios_and_best_mode_leave_out_what_does_not_count() -> None:
    reference = (2.0, 2.0)

    def summary(name: str, seconds: float, loss: float, error: str | None = None):  # type: ignore[no-untyped-def]
        return summarise(name, [outcome(0, [1.0, seconds], [2.0, loss], error)], 1, (10, 10), (5, 5), reference)

    summaries = [
        summary("gemfleet", 1.0, 2.0),
        summary("trl-default", 4.0, 2.0),
        summary("trl-packed", 2.0, 2.0),
        summary("trl-best", 0.1, 3.0),
        summary("trl-other", 0.1, 2.0, error="ended with code 1"),
    ]
    assert fastest(summaries, "trl-") == "trl-packed"
    assert speed_ratios(summaries, "trl-default") == pytest.approx(
        {"gemfleet": 4.0, "trl-default": 1.0, "trl-packed": 2.0}
    )
    assert speed_ratios(summaries, "trl-best") == {}
