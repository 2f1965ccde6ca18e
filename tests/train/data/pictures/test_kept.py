"""Prepared pictures are kept with their set, by content, and equal ones once; the data's digest knows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemfleet.train.data.prepared.store import PreparedCache, PreparedStore
from gemfleet.train.errors import UserError
from support.pictures import QUESTION, chat, picture, prepared, seeing_model, written


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeing_model(tmp_path_factory.mktemp("model"))


def row(*names: str) -> dict[str, Any]:
    return chat([*({"type": "image", "path": name} for name in names), {"type": "text", "text": QUESTION}], "a cat")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "again.png").write_bytes((tmp_path / "0.png").read_bytes())
    picture(0).save(tmp_path / "again.bmp")
    return written(
        tmp_path, row("0.png", "1.png"), row("again.png", "again.bmp"), row(), row("2.png"), row("missing.png")
    )


def test_equal_pictures_are_one(data: Path, model: Path) -> None:
    source, report = prepared(data, model)
    assert report.pictures == 5
    assert len(source.pictures) == 3
    rows = source.step(0, 0, 0).rows
    assert len(rows.pictures) == 5
    assert source.pixels(rows.pictures).shape == (5, 3, 32, 32)
    assert source.pixels(rows.pictures[:0]).shape[0] == 0
    with pytest.raises(KeyError):
        source.pixels(np.array([7]))


def test_a_second_run_reads_no_picture_and_sees_the_same(
    tmp_path: Path, data: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PreparedCache(PreparedStore(tmp_path / "cache", 1 << 30), model)
    first, told = prepared(data, model, cache)
    monkeypatch.setattr("gemfleet.train.local.source.open_set", lambda data: pytest.fail("it reads the rows again"))
    again, told_again = prepared(data, model, cache)
    assert told_again.summary() == told.summary()
    assert told_again.digest == told.digest
    ours, theirs = again.step(0, 0, 0).rows, first.step(0, 0, 0).rows
    assert np.array_equal(ours.pictures, theirs.pictures)
    assert np.array_equal(ours.picture_starts, theirs.picture_starts)
    assert np.array_equal(again.pixels(ours.pictures), first.pixels(theirs.pictures))
    blind = PreparedCache(PreparedStore(tmp_path / "small", 10_000), model)
    monkeypatch.undo()
    prepared(data, model, blind)
    assert blind.store.kept() == []  # its pixels alone are larger


@pytest.mark.parametrize("name", ["1.png", "missing.png"])
def test_another_picture_of_the_same_name_is_other_data(tmp_path: Path, data: Path, model: Path, name: str) -> None:
    cache = PreparedCache(PreparedStore(tmp_path / "cache", 1 << 30), model)
    _, told = prepared(data, model, cache)
    picture(9).save(tmp_path / name)
    source, told_again = prepared(data, model, cache)
    assert told_again.digest is not None
    assert told_again.digest != told.digest
    assert told_again.digest.examples == 4 + (name == "missing.png")
    assert len(source.pictures) == 3 + (name == "missing.png")
    assert len(cache.store.kept()) == 1


def test_pixels_that_are_damaged_on_disk_are_made_again(tmp_path: Path, data: Path, model: Path) -> None:
    cache = PreparedCache(PreparedStore(tmp_path / "cache", 1 << 30), model)
    first, _ = prepared(data, model, cache)
    (kept,) = cache.store.kept()
    file = tmp_path / "cache" / kept.key / "pixels"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    again, _ = prepared(data, model, cache)
    assert np.array_equal(again.pixels(again.pictures), first.pixels(first.pictures))


def test_relative_paths_are_beside_each_file_of_a_pattern(tmp_path: Path, model: Path) -> None:
    for number in range(2):
        folder = tmp_path / f"part-{number}"
        folder.mkdir()
        picture(number).save(folder / "cat.png")
        written(folder, row("cat.png"), row(f"../part-{1 - number}/cat.png"))
    source, report = prepared(tmp_path / "part-*" / "rows.jsonl", model)
    assert (report.examples, len(source.pictures)) == (4, 2)
    _, report = prepared(tmp_path / "part-0" / "rows.jsonl", model)
    assert (report.examples, report.left_out_count) == (1, 1)


def test_a_full_disk_is_one_sentence(data: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.pwrite", lambda descriptor, content, place: len(content) - 1)
    with pytest.raises(UserError, match=r"has no room left for pictures \(No space left on device\), 0\.0 MB each"):
        prepared(data, model)
