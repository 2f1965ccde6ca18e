"""Several data sets: what each of them is read with, and which lists make no sense."""

from __future__ import annotations

from typing import Any

import pytest
from gemfleet.train.config.sections.data import DataConfig
from pydantic import ValidationError


def sets(**options: Any) -> list[Any]:
    return DataConfig(**options).train_sets()


def test_one_path_is_one_set_with_the_sections_settings() -> None:
    (only,) = sets(train="folder/rows.jsonl", format="text", limit=3)
    assert (only.path, only.name, only.format, only.limit, only.share) == (
        "folder/rows.jsonl",
        "rows",
        "text",
        3,
        None,
    )
    assert (only.field, only.settings) == ("train.data.train", "train.data")


def test_a_list_is_written_as_short_as_it_was_said() -> None:
    said = DataConfig.model_validate({"train": [{"path": "b.csv", "weight": 2}]}).model_dump()
    assert said["train"] == [{"path": "b.csv", "weight": 2}]


def test_a_set_overrides_what_the_section_says() -> None:
    first, second = sets(train=["a.jsonl", {"path": "b.csv", "format": "text", "limit": 7}], limit=3, format="messages")
    assert (first.format, first.limit, second.format, second.limit) == ("messages", 3, "text", 7)
    assert (second.field, second.settings) == ("train.data.train[1].path", "train.data.train[1]")


def test_weights_become_shares() -> None:
    found = sets(train=[{"path": "a", "weight": 3}, {"path": "b", "weight": 1.0}])
    assert [entry.share for entry in found] == [0.75, 0.25]
    assert [entry.share for entry in sets(train=["a", "b"])] == [None, None]


def test_a_set_is_named_after_its_file_or_the_folder_of_its_pattern() -> None:
    paths = ["a/rows.jsonl.gz", "shards/*.jsonl", "x/[ab]/**/*.csv", "*.jsonl", "owner/name", "folder/"]
    assert [entry.name for entry in sets(train=paths)] == ["rows", "shards", "x", "*.jsonl", "name", "folder"]


def test_evaluation_sets_have_no_limit_and_a_file_is_read_whole(tmp_path: Any) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    data = DataConfig.model_validate(
        {"train": "x", "eval": [str(tmp_path / "rows.jsonl"), "hub/id"], "limit": 3, "split": "validation"}
    )
    assert [(entry.name, entry.limit, entry.split) for entry in data.eval_sets()] == [
        ("rows", None, "train"),
        ("id", None, "validation"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": []}, "at least 1 item"),
        ({"train": [{"path": "a", "weight": 1}, "b"]}, "a weight for a and none for b"),
        ({"train": [{"path": "a", "share": 0.5}, {"path": "b", "share": 0.6}]}, "sum to 1.1"),
        ({"train": [{"path": "a", "share": 0.5, "weight": 1}]}, "both `weight` and `share`"),
        ({"train": [{"path": "a", "weight": float("inf")}, {"path": "b", "weight": 1}]}, "finite number"),
        ({"train": "a", "eval": [{"path": "b", "weight": 1}]}, "evaluation scores every example once"),
        ({"train": "a", "eval": ["x/b.jsonl", "y/b.jsonl"]}, "two sets named 'b'"),
        ({"train": [{"path": "a", "folder": "b"}]}, "folder"),
    ],
)
def test_lists_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig(**options)


def test_paths_are_replaced_by_their_fields() -> None:
    data = DataConfig.model_validate({"train": ["a"], "eval": "c"})
    assert data.paths() == {"train.data.train[0].path": "a", "train.data.eval": "c"}
    other = data.with_paths({"train.data.train[0].path": "/a", "train.data.eval": "/c"})
    assert list(other.paths().values()) == ["/a", "/c"]
