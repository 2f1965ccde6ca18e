"""The cache of found micro-batches, and telling that memory ran out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gemfleet.train.batch_finder.cache import BatchCache, CachedBatch, cache_key
from gemfleet.train.batch_finder.probes.probe import worst_rows
from gemfleet.train.batch_finder.setting import settled
from gemfleet.train.batch_finder.variants import variants_of
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.sharing import BatchConfig
from gemfleet.train.device.memory import container_bytes, peak_resident_bytes, reset_peak, resident_bytes
from gemfleet.train.device.out_of_memory import (
    EVALUATION,
    MemoryLimitError,
    OutOfMemoryError,
    check_memory_limit,
    is_out_of_memory,
    told_out_of_memory,
)
from pydantic import ValidationError

FOUND = CachedBatch("ddp", 8, 1234.5, 2**30, found_at=1.0)


def test_what_is_put_is_found_until_it_is_removed(tmp_path: Path) -> None:
    cache = BatchCache(tmp_path / "cache" / "batch.json")
    assert cache.get("a") is None
    cache.put("a", FOUND)
    cache.put("b", CachedBatch("ddp, selective", 2, 1.0, 1))
    assert BatchCache(cache.path).get("a") == FOUND
    cache.remove("b")
    assert list(cache.entries()) == ["a"]
    assert cache.clear() == 1
    assert cache.entries() == {}
    assert list(cache.path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 0, "entries": {}}', '{"format": 1, "entries": {"a": {}}}']
)
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    cache = BatchCache(tmp_path / "batch.json")
    cache.path.write_text(content)
    assert cache.get("a") is None
    cache.put("a", FOUND)
    assert cache.get("a") == FOUND


def test_the_key_depends_on_every_fact_and_not_on_their_order() -> None:
    facts = {"max_length": 1024, "nodes": ["one"]}
    assert cache_key(facts) == cache_key(dict(reversed(facts.items())))
    assert cache_key(facts) != cache_key({**facts, "max_length": 512})


@pytest.mark.parametrize(("text", "size"), [("16GiB", 16 * 2**30), ("1.5 GiB", 3 * 2**29), ("512MiB", 2**29), (7, 7)])
def test_memory_sizes(text: str | int, size: int) -> None:
    assert BatchConfig(device_memory_limit=text).memory_limit_bytes == size


@pytest.mark.parametrize("text", ["16 GB", "lots", "-1GiB", 0, "0"])
def test_a_wrong_memory_size_is_an_error(text: str | int) -> None:
    with pytest.raises(ValidationError, match="no memory size"):
        BatchConfig(device_memory_limit=text)


def test_what_libraries_raise_when_memory_ran_out() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 GB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("Connection closed by peer"))
    assert not is_out_of_memory(ValueError("out of memory"))
    lower = pytest.raises(OutOfMemoryError, match=r"8 rows in a pass.*train\.batch\.micro, for instance to 4")
    with lower, told_out_of_memory(8):
        raise torch.OutOfMemoryError("full")
    with pytest.raises(OutOfMemoryError, match=r"train\.data\.max_length"), told_out_of_memory(1):
        raise MemoryError
    scored = pytest.raises(OutOfMemoryError, match=r"lower train\.evaluation\.micro, for instance to 8")
    with scored, told_out_of_memory(4), told_out_of_memory(16, EVALUATION):
        raise MemoryError
    with pytest.raises(KeyError), told_out_of_memory(1):
        raise KeyError("x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA refuses by itself")
def test_a_cpu_rank_is_held_to_its_limit() -> None:
    check_memory_limit(BatchConfig())
    check_memory_limit(BatchConfig(device_memory_limit="1000GiB"))
    with pytest.raises(MemoryLimitError, match="device_memory_limit is 1048576"):
        check_memory_limit(BatchConfig(device_memory_limit="1MiB"))


def test_the_peak_is_measured_anew_after_a_reset() -> None:
    size = 64 * 2**20
    reset_peak(torch.device("cpu"))
    before = peak_resident_bytes()
    block = torch.ones(size // 4)
    assert block.sum() > 0
    assert peak_resident_bytes() - before > 0.9 * size
    del block
    reset_peak(torch.device("cpu"))
    assert abs(peak_resident_bytes() - resident_bytes()) < size / 4
    assert peak_resident_bytes() - before < 0.5 * size


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "4096\n"}, 4096),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "8192\n"}, 8192),
        ("5:memory:/a\n3:cpu:/x\n", {"memory/a/memory.limit_in_bytes": "2048"}, 2048),
        ("5:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("0::/gone\n", {}, None),
    ],
)
def test_the_least_limit_of_the_control_groups(
    tmp_path: Path, own: str, files: dict[str, str], limit: int | None
) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert container_bytes(tmp_path / "fs", tmp_path / "own") == limit


def test_worst_rows_are_full_and_all_supervised() -> None:
    rows = worst_rows(3, 16, vocabulary=100)
    assert (rows.row_count, len(rows.tokens), rows.supervised_tokens) == (3, 48, 45)
    assert [part.row_count for part in rows.micro_batches(2)] == [2, 1]


@pytest.mark.parametrize(
    ("asked", "seen", "result"), [(None, 8, None), (None, 0, None), (16, 16, 16), (16, 8, 8), (None, 3, 3), (2, 8, 2)]
)
def test_an_evaluation_takes_no_larger_passes_than_fit(asked: int | None, seen: int, result: int | None) -> None:
    values = {"model": "x", "data": {"train": "y"}, "strategy": "ddp", "evaluation": {"micro": asked}}
    config = TrainConfig.model_validate(values)
    found = settled(config, variants_of(config), "ddp, selective", 4, seen)
    assert (found.batch.micro, found.evaluation.micro, found.activation_checkpointing) == (4, result, "selective")
