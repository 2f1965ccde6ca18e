"""A folder's splits are told by the names of its files: what was kept for testing is never trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gemfleet.train.config.sections.data import DataConfig
from gemfleet.train.data.files.folders import files_of_split
from gemfleet.train.data.readers import Row, open_rows
from gemfleet.train.errors import UserError
from gemfleet.train.local.source import prepare_local
from support.tiny_tokenizer import tiny_tokenizer


def folder_of(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps({"text": name}) + "\n")
    return folder


def texts(source: Path, **options: Any) -> list[str]:
    return [row.values["text"] for row in open_rows(str(source), **options).rows if isinstance(row, Row)]


@pytest.mark.parametrize(
    ("names", "split", "read"),
    [
        (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "validation-00000-of-00001.jsonl"], "val", [2]),
        (["my_Training.jsonl", "my_dev.jsonl", "more.jsonl"], "train", [0]),
        (["trainset1.jsonl", "testset1.jsonl"], "train", [0]),
        (["traindata.jsonl", "evaldata.jsonl"], "test", [1]),
        (["a.jsonl", "b.jsonl"], "train", ["a.jsonl", "b.jsonl"]),
        (["en.jsonl", "ko.jsonl"], "ko", ["ko.jsonl"]),
        (["contest.jsonl", "latest.jsonl"], "train", [0, 1]),
    ],
)
def test_only_the_split_is_read(tmp_path: Path, names: list[str], split: str, read: list[Any]) -> None:
    wanted = [names[name] if isinstance(name, int) else name for name in read]
    found = files_of_split(folder_of(tmp_path / "data", *names), split)
    assert [path.name for path in found.read] == wanted
    assert [path.name for path in found.left] == sorted(set(names) - set(wanted))
    assert texts(tmp_path / "data", split=split) == wanted


@pytest.mark.parametrize(
    ("names", "split", "there"),
    [
        (["a.jsonl"], "test", r"no file that is named after a split \(a\.jsonl\)"),
        (["test.jsonl", "dev.jsonl"], "train", r"files of 'test', 'validation' \(dev\.jsonl, test\.jsonl\)"),
        (["train.jsonl"], "validation", "files of 'train'"),
    ],
)
def test_a_split_that_is_not_there_is_refused(tmp_path: Path, names: list[str], split: str, there: str) -> None:
    folder = folder_of(tmp_path / "data", *names)
    with pytest.raises(UserError, match=rf"train\.data\.split is '{split}', but .* has {there}"):
        open_rows(str(folder), split)


def test_a_single_file_has_no_splits(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data", "rows.jsonl", "test.jsonl")
    with pytest.raises(UserError, match=r"split is 'test', but .*rows\.jsonl has no splits"):
        open_rows(str(folder / "rows.jsonl"), "test")
    with pytest.raises(UserError, match="split is 'test', but demo has no splits"):
        open_rows("demo", "test")
    assert texts(folder / "test.jsonl") == ["test.jsonl"]
    assert texts(folder / "test.jsonl", split="test") == ["test.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "split", "read"),
    [
        ("*.jsonl", "train", ["train.jsonl"]),
        ("*.jsonl", "validation", ["dev.jsonl"]),
        ("*[tv].jsonl", "train", None),
        ("test*", "train", ["test.jsonl"]),
        ("[m-t]o*", "train", ["more.jsonl"]),
        ("[m-t]o*", "test", None),
    ],
)
def test_a_pattern_hears_the_split_too(tmp_path: Path, pattern: str, split: str, read: list[str] | None) -> None:
    folder = folder_of(tmp_path / "data", "train.jsonl", "test.jsonl", "dev.jsonl", "more.jsonl")
    if read is None:
        with pytest.raises(UserError, match=rf"split is '{split}', but the pattern .* has "):
            texts(folder / pattern, split=split)
    else:
        assert texts(folder / pattern, split=split) == read


def test_what_is_not_read_is_named_to_the_person(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path / "data", "train.jsonl", "test.jsonl", "rows.jsonl.gz", "more/a.jsonl", "._train.jsonl", ".gitignore"
    )
    data = DataConfig(train=str(folder), eval=str(folder / "test.jsonl"), split="train")
    _, report = prepare_local(data, 1, 0, tiny_tokenizer(tmp_path / "tokenizer"), 1)
    assert report.rows == 1
    assert report.summary().endswith("Not read: ._train.jsonl, more/, rows.jsonl.gz, test.jsonl.")
    evaluated = data.model_copy(update={"train": str(folder / "test.jsonl"), "eval": str(folder)})
    _, report = prepare_local(evaluated, 1, 0, tiny_tokenizer(tmp_path / "tokenizer"), 1)
    assert f"Evaluation set {folder}: Not read: ._train.jsonl, more/, rows.jsonl.gz, test.jsonl." in report.summary()


def test_a_folder_without_data_says_what_it_holds(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data", "train/a.jsonl", "README.md")
    with pytest.raises(UserError, match=r"no \.jsonl, .* file in it \(it holds README\.md, train/\)"):
        open_rows(str(folder))
