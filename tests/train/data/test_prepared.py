"""What was tokenised once is used again: equal tokens and reports, by content, within a limit, never a damaged set."""

from __future__ import annotations

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemfleet.train.config.sections.data import DataConfig, DataSet
from gemfleet.train.data.packing import TokenBlock
from gemfleet.train.data.prepared.key import set_key
from gemfleet.train.data.prepared.store import PreparedCache, PreparedStore, prepared_cache
from gemfleet.train.data.readers import Row, RowSource, open_set
from gemfleet.train.data.report import DataReport
from gemfleet.train.local.source import LocalBlockSource, chunks, prepare_local
from support.tiny_tokenizer import tiny_tokenizer
from transformers import AutoTokenizer

ROWS = [{"prompt": f"question {number}? ", "completion": f"answer {number}"} for number in range(40)]
LIMIT = 1 << 30


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(folder)
    return folder


def written(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not JSON\n")
    return path


def prepared(path: Path, cache: PreparedCache) -> tuple[LocalBlockSource, DataReport]:
    data = DataConfig(train=str(path), max_length=64)
    return prepare_local(data, 4, 7, AutoTokenizer.from_pretrained(cache.tokenizer_folder), 1, cache=cache)


def test_a_second_preparation_reads_no_row_and_equals_the_first(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PreparedCache(PreparedStore(tmp_path / "cache", LIMIT), tokenizer_folder)
    path = written(tmp_path / "rows.jsonl")
    first, told = prepared(path, cache)
    moved = tmp_path / "elsewhere" / "rows.jsonl"
    moved.parent.mkdir()
    shutil.copy(path, moved)
    monkeypatch.setattr("gemfleet.train.local.source.open_set", lambda data: pytest.fail("it reads the rows again"))
    again, told_again = prepared(moved, cache)
    assert told_again.summary() == told.summary().replace(str(path), str(moved))
    assert told_again.digest == told.digest
    assert "1 rows were left out" in told.summary()
    for step in range(first.steps_per_epoch):
        ours, theirs = first.step(0, step, 0).rows, again.step(0, step, 0).rows
        assert np.array_equal(ours.tokens, theirs.tokens)
        assert np.array_equal(ours.supervised, theirs.supervised)


def test_runs_that_start_at_one_moment_tokenise_once(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PreparedCache(PreparedStore(tmp_path / "cache", LIMIT), tokenizer_folder)
    path, read = written(tmp_path / "rows.jsonl"), list[str]()

    def slowly(data: DataSet) -> RowSource:
        read.append(data.path)
        time.sleep(0.3)  # the others are here before this one has kept anything
        return open_set(data)

    monkeypatch.setattr("gemfleet.train.local.source.open_set", slowly)
    with ThreadPoolExecutor(3) as pool:
        digests = [report.digest for _, report in pool.map(lambda _: prepared(path, cache), range(3))]
    assert read == [str(path)]
    assert len(set(digests)) == 1


def test_what_decides_the_tokens_decides_the_key(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = written(tmp_path / "rows.jsonl")

    def key(at: Path = path, **options: Any) -> str | None:
        (data,) = DataConfig(train=str(at), **options).train_sets()
        return set_key(data, tokenizer_folder)

    first = key()
    assert key(eval_fraction=0.5, cache="1GiB", bad_rows="fail") == first
    others = [key(max_length=8), key(limit=3), key(add_eos=False), key(format="text"), key(too_long="truncate")]
    content = path.read_bytes()
    path.write_bytes(content.replace(b"answer 7", b"answer 8"))
    others.append(key())
    for name in ("special_tokens_map.json", "additional_chat_templates/tool_use.jinja"):
        other = tokenizer_folder / name
        other.parent.mkdir(exist_ok=True)
        other.write_text("{}")
        try:
            os.utime(other)
            others.append(key())
        finally:
            other.unlink()
    assert len({first, *others}) == 1 + len(others)
    (hub,) = DataConfig(train="someone/data").train_sets()
    assert set_key(hub, tokenizer_folder) is None


@pytest.mark.parametrize("name", ["tokens", "supervised", "lengths", "digests", "about.json"])
def test_a_damaged_set_is_prepared_again(tmp_path: Path, tokenizer_folder: Path, name: str) -> None:
    cache = PreparedCache(PreparedStore(tmp_path / "cache", LIMIT), tokenizer_folder)
    path = written(tmp_path / "rows.jsonl")
    _, told = prepared(path, cache)
    (kept,) = cache.store.kept()
    file = tmp_path / "cache" / kept.key / name
    content = bytearray(file.read_bytes())
    place = content.index(b'"rows": 41') + 9 if name == "about.json" else len(content) // 2
    content[place] ^= 1
    file.write_bytes(content)
    (data,) = DataConfig(train=str(path), max_length=64).train_sets()
    assert cache.find(cache.key(data), data) is None
    _, again = prepared(path, cache)
    assert again.digest == told.digest
    assert cache.find(cache.key(data), data) is not None


def test_a_cache_that_cannot_be_made_keeps_nothing(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMFLEET_HOME", str(tmp_path / "home"))
    (tmp_path / "home").write_text("a file where the folder should be")
    _, told = prepared(written(tmp_path / "rows.jsonl"), prepared_cache(LIMIT, tokenizer_folder))
    assert told.examples == 36


def test_the_least_recently_used_sets_go(tmp_path: Path) -> None:
    store, report = PreparedStore(tmp_path, 3500), DataReport("rows.jsonl")
    (data,) = DataConfig(train="rows.jsonl").train_sets()

    def save(key: str, tokens: int) -> None:
        block = TokenBlock(np.zeros(tokens, np.int32), np.ones(tokens, np.bool_), np.array([0, tokens]))
        store.save(key, [block], np.zeros(1, np.uint64), report)

    for age, key in enumerate(("a", "b", "c")):
        save(key, 200)  # 1,012 bytes
        os.utime(tmp_path / key / "about.json", (age, age))
    assert store.find("a", data) is not None  # now it is the newest
    save("d", 200)
    assert {kept.key for kept in store.kept()} == {"a", "c", "d"}
    save("huge", 1000)
    assert {kept.key for kept in store.kept()} == {"a", "c", "d"}
    assert store.clear() == 3
    assert list(tmp_path.iterdir()) == []


def test_blocks_are_whole_examples_in_order(tmp_path: Path) -> None:
    lengths = np.array([5, 9, 1, 30, 2, 7])
    block = TokenBlock(np.arange(54, dtype=np.int32), np.arange(54) % 3 == 0, np.concatenate([[0], np.cumsum(lengths)]))
    store = PreparedStore(tmp_path, LIMIT)
    store.save("key", [block.select([0, 1]), block.select([2, 3, 4, 5])], np.arange(6, dtype=np.uint64), DataReport(""))
    (data,) = DataConfig(train="rows.jsonl").train_sets()
    found = store.find("key", data)
    assert found is not None
    parts = list(found.blocks(tokens=15))
    assert [part.lengths.tolist() for part in parts] == [[5, 9, 1], [30], [2, 7]]
    whole = TokenBlock.concatenate(parts)
    assert np.array_equal(whole.tokens, block.tokens)
    assert np.array_equal(whole.supervised, block.supervised)


def test_chunks_grow_with_the_rows_and_end_at_many_characters() -> None:
    def sizes(rows: int, text: str) -> list[int]:
        found = (Row(f"row {number}", {"text": text}) for number in range(rows))
        return [len(chunk) for chunk in chunks(RowSource("x", found, None, ("text",)))]

    assert sizes(2500, "a") == [1000, 1000, 500]
    assert sum(sizes(300_000, "a")) == 300_000
    assert len(sizes(300_000, "a")) < 200
    assert sizes(100, "a" * 1_000_000) == [8] * 12 + [4]
