"""Several data sets become one epoch: by their shares in every prefix, and alike for every seed, rank and resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemfleet.train.config.sections.data import DataConfig
from gemfleet.train.data.mixture import Mixture, interleaved
from gemfleet.train.data.packing import epoch_order
from gemfleet.train.errors import UserError
from gemfleet.train.local.source import LocalBlockSource, prepare_local
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_tokenizer import tiny_tokenizer


def set_of(mixture: Mixture, order: Any) -> Any:
    return np.searchsorted(np.cumsum(mixture.sizes), order, side="right")


@settings(deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.integers(0, 600))
def test_each_set_is_within_one_example_of_its_share_in_every_prefix(parts: list[int], length: int) -> None:
    turns = interleaved(parts, length)
    had = np.cumsum(np.eye(len(parts), dtype=int)[turns], axis=0)
    due = np.outer(np.arange(1, length + 1), parts) / sum(parts)
    assert np.all(np.abs(had - due) < 1)


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(0, 2**40), st.integers(0, 3))
def test_without_shares_an_epoch_has_each_example_once(sizes: list[int], seed: int, epoch: int) -> None:
    mixture = Mixture(tuple(sizes))
    order = mixture.order(seed, epoch)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    had = np.cumsum(np.eye(len(sizes), dtype=int)[set_of(mixture, order)], axis=0)
    assert np.all(np.abs(had - np.outer(np.arange(1, len(order) + 1), sizes) / sum(sizes)) < 1)
    if len(sizes) == 1:
        np.testing.assert_array_equal(order, epoch_order(sizes[0], seed, epoch))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=2, max_size=4), st.integers(0, 99))
def test_with_shares_a_set_repeats_only_when_all_of_it_was_had(sets: list[tuple[int, int]], seed: int) -> None:
    weights = [weight for _, weight in sets]
    mixture = Mixture(tuple(size for size, _ in sets), tuple(weight / sum(weights) for weight in weights))
    epochs = [mixture.order(seed, epoch) for epoch in range(3)]
    assert [len(order) for order in epochs] == [mixture.examples] * 3
    for number, size in enumerate(mixture.sizes):
        mine = np.concatenate([order[set_of(mixture, order) == number] for order in epochs])
        for first in range(0, len(mine), size):  # permutations end to end, over the borders of epochs
            assert len(set(mine[first : first + size].tolist())) == len(mine[first : first + size])


def test_three_to_one_is_within_three_examples_of_every_hundred() -> None:
    mixture = Mixture((50, 250), (0.75, 0.25))
    assert mixture.counts.tolist() == [225, 75]
    for epoch in range(2):
        first = set_of(mixture, mixture.order(7, epoch)) == 0
        for begin in range(0, 300, 100):
            assert abs(first[: begin + 100].sum() - 0.75 * (begin + 100)) <= 3
            assert abs(first[begin : begin + 100].sum() - 75) <= 3
    assert mixture.order(7, 0).tolist() != mixture.order(8, 0).tolist()


def written(folder: Path, name: str, rows: int) -> str:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": f"{name} {number}"}) + "\n" for number in range(rows)))
    return str(path)


@pytest.fixture
def two_sets(tmp_path: Path) -> list[dict[str, Any]]:
    chat, code = written(tmp_path, "chat", 24), written(tmp_path, "code", 8)
    return [{"path": chat, "weight": 1}, {"path": code, "weight": 3}]


def prepared(folder: Path, ranks: int, data: dict[str, Any]) -> tuple[LocalBlockSource, Any]:
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    return prepare_local(DataConfig.model_validate({"max_length": 64, **data}), 4, 42, tokenizer, ranks)


def documents(source: LocalBlockSource, epoch: int, step: int, ranks: int) -> list[bytes]:
    """The tokens of a step's documents on all ranks."""
    found = []
    for rank in range(ranks):
        rows = source.step(epoch, step, rank).rows
        found += [part.tobytes() for part in np.split(rows.tokens, np.cumsum(rows.document_lengths)[:-1])]
    return sorted(found)


def test_every_number_of_ranks_and_a_resume_have_the_same_steps(tmp_path: Path, two_sets: list[Any]) -> None:
    options = {"train": two_sets, "eval_fraction": 0.0}
    alone, report = prepared(tmp_path, 1, options)
    assert alone.steps_per_epoch == 8
    assert [one.repeats for one in report.sets] == [pytest.approx(8 / 24), 3.0]
    whole = {(e, s): documents(alone, e, s, 1) for e in range(3) for s in range(8)}
    for ranks in (2, 4):
        resumed, again = prepared(tmp_path, ranks, options)
        assert again == report
        for epoch, step in ((2, 3), (2, 7), (0, 0), (1, 0)):  # a run that goes on begins anywhere
            assert documents(resumed, epoch, step, ranks) == whole[epoch, step]


def test_each_set_has_counts_and_held_out_examples_of_its_own(tmp_path: Path, two_sets: list[Any]) -> None:
    with Path(two_sets[1]["path"]).open("a") as file:
        file.write('{"text": 3}\n')
    source, report = prepared(tmp_path, 1, {"train": two_sets, "eval_fraction": 0.25})
    assert source.eval_sets == ("chat", "code")
    assert [len(source.eval_rows(0, name).document_lengths) for name in source.eval_sets] == [6, 2]
    counts = [(one.name, one.rows, one.examples, one.eval_examples, one.left_out_count) for one in report.sets]
    assert counts == [("chat", 24, 18, 6, 0), ("code", 9, 6, 2, 1)]
    assert (report.rows, report.examples, report.eval_examples, report.left_out_count) == (33, 24, 8, 1)
    assert report.tokens == sum(one.tokens for one in report.sets) > 0
    first, chat, code = report.summary().splitlines()
    assert first.endswith("1 rows were left out.")
    assert chat.startswith("- chat: 25.0% of an epoch, each example 0.333 times; ")
    assert code.endswith("code.jsonl line 9 (a int)).")


def test_a_set_of_which_nothing_is_left_is_named(tmp_path: Path, two_sets: list[Any]) -> None:
    Path(two_sets[1]["path"]).write_text('{"text": 3}\n')
    with pytest.raises(UserError, match=r"all 1 rows of .*code\.jsonl were left out"):
        prepared(tmp_path, 1, {"train": two_sets})


def test_evaluation_sets_keep_their_names(tmp_path: Path, two_sets: list[Any]) -> None:
    sets = [two_sets[0]["path"], {"path": two_sets[1]["path"], "name": "exam"}]
    source, report = prepared(tmp_path, 2, {"train": two_sets[0]["path"], "eval": sets})
    assert source.eval_sets == ("chat", "exam")
    assert sum(len(source.eval_rows(rank, "exam").document_lengths) for rank in range(2)) == 8
    assert (report.examples, report.eval_examples) == (24, 32)
    assert report.summary().endswith(f"- evaluation set exam: {two_sets[1]['path']}, 8 examples.")


def test_sets_of_one_name_are_numbered_everywhere(tmp_path: Path) -> None:
    for part in "ab":
        (tmp_path / part).mkdir()
    paths = [written(tmp_path / "a", "rows", 10), written(tmp_path / "b", "rows", 10), written(tmp_path, "rows-2", 10)]
    data = DataConfig.model_validate({"train": paths})
    assert [one.name for one in data.train_sets()] == ["rows", "rows-3", "rows-2"]
    source, report = prepared(tmp_path, 1, {"train": paths})
    assert [one.name for one in report.sets] == ["rows", "rows-3", "rows-2"]
    assert source.eval_sets == ("rows", "rows-3", "rows-2")


@pytest.mark.parametrize("change", ["weight", "order", "eval"])
def test_the_digest_covers_the_mixture_and_what_is_evaluated(tmp_path: Path, two_sets: list[Any], change: str) -> None:
    options: dict[str, Any] = {"train": two_sets, "eval": written(tmp_path, "exam", 3)}
    before = prepared(tmp_path, 1, options)[1].digest
    assert prepared(tmp_path, 1, options)[1].digest == before
    if change == "weight":
        two_sets[0]["weight"] = 2
    elif change == "order":
        two_sets.reverse()
    else:
        written(tmp_path, "exam", 4)
    assert prepared(tmp_path, 1, options)[1].digest != before
