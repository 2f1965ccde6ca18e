"""Staging: who gives which chunk to whom, what a node's copy does with its files, and both on two real nodes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemfleet.cluster.errors import ClusterError
from gemfleet.cluster.staging.exchange import plan_deliveries
from gemfleet.cluster.staging.stage import send_folder, stage_folder
from gemfleet.cluster.staging.staged_copy import Held, StagedCopy, as_array
from gemfleet.cluster.staging.staged_files import StagedFile, all_chunks, content_hash, list_files, read_chunk
from hypothesis import given
from hypothesis import strategies as st

CHUNK = 1000
NODES = ("a" * 56, "b" * 56)
NOWHERE = Path("/nowhere")


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=20),
    held=st.dictionaries(st.sampled_from("abcdef"), st.sets(st.integers(0, 19)), max_size=6),
    lacking=st.sets(st.sampled_from("abcdef"), min_size=1),
)
def test_every_node_gets_just_what_it_lacks_and_the_sender_gives_nothing_twice(
    sizes: list[int], held: dict[str, set[int]], lacking: set[str]
) -> None:
    deliveries = plan_deliveries(sizes, held, sorted(lacking))
    assert len({d.chunk for d in deliveries}) == len(deliveries)
    got = {node: set(held.get(node, ())) & set(range(len(sizes))) for node in lacking}
    for delivery in deliveries:
        holders = {node for node, chunks in held.items() if delivery.chunk in chunks}
        assert (delivery.giver in holders) if holders else delivery.giver is None
        for node in delivery.takers:
            assert delivery.chunk not in got[node]
            got[node].add(delivery.chunk)
    assert all(chunks == set(range(len(sizes))) for chunks in got.values())


def test_nodes_take_equal_parts_from_the_sender() -> None:
    deliveries = plan_deliveries([10] * 9, {}, ["a", "b", "c"])
    assert Counter(d.takers[0] for d in deliveries) == {"a": 3, "b": 3, "c": 3}
    givers = Counter(d.giver for d in plan_deliveries([10] * 8, {"x": set(range(8)), "y": set(range(8))}, ["a"]))
    assert givers == {"x": 4, "y": 4}


def folder_of(base: Path, **files: bytes) -> Path:
    base.mkdir(parents=True)
    for name, content in files.items():
        (base / name).write_bytes(content)
    return base


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = folder_of(tmp_path / "model", **{"w.safetensors": bytes(range(256)) * 10, "empty": b""})
    folder_of(folder / "deep", c=b"333")
    (tmp_path / "blob").write_bytes(b"linked")
    (folder / "link").symlink_to(tmp_path / "blob")
    return folder


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache" / "content"


def take_all(copy: StagedCopy, folder: Path, files: tuple[StagedFile, ...], numbers: set[int] | None = None) -> None:
    for number, chunk in reversed(list(enumerate(all_chunks(files)))):
        if numbers is None or number in numbers:
            copy.take(number, as_array(read_chunk(folder, chunk)))


def test_a_copy_is_whole_or_has_no_name(model: Path, target: Path) -> None:
    files = list_files(model, CHUNK)
    assert [len(file.chunks) for file in files] == [1, 1, 1, 3]
    copy = StagedCopy(files, target, NODES[0])
    assert copy.find(NOWHERE, NODES) == Held(None)
    take_all(copy, model, files)
    assert not target.exists()
    assert copy.finish() == copy.finish() == str(target)
    assert list_files(target, CHUNK) == files
    assert not (target / "link").is_symlink()
    assert copy.find(NOWHERE, NODES) == Held(str(target))
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_what_arrived_is_used_again_also_under_another_node_id(model: Path, target: Path) -> None:
    files = list_files(model, CHUNK)
    take_all(StagedCopy(files, target, NODES[0]), model, files, {0, 2, 4})
    before = next(target.parent.glob(".*.part"))
    (before / "deep" / "c").write_bytes(b"bad")
    assert StagedCopy(files, target, NODES[1]).find(NOWHERE, NODES) == Held(None)  # its owner lives
    again = StagedCopy(files, target, NODES[1])
    assert [file.path for file in files] == ["deep/c", "empty", "link", "w.safetensors"]
    assert again.find(NOWHERE, NODES[1:]) == Held(None, frozenset({2, 4}))
    assert bytes(again.give(4, None)) == read_chunk(model, all_chunks(files)[4])
    take_all(again, model, files, {0, 1, 3, 5})
    assert list_files(Path(again.finish()), CHUNK) == files


def test_a_hub_cache_of_the_node_is_used_in_place(model: Path, target: Path, tmp_path: Path) -> None:
    files, copy = list_files(model, CHUNK), StagedCopy(list_files(model, CHUNK), target, NODES[0])
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / "1234"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(model)
    assert copy.find(NOWHERE, NODES) == Held(str(snapshot))
    (model / "more.safetensors").write_bytes(b"")  # another model then
    assert copy.find(NOWHERE, NODES) == Held(None)
    (model / "more.safetensors").unlink()
    (model / "w.safetensors").write_bytes(bytes(2560))
    assert copy.find(NOWHERE, NODES) == Held(None)
    assert len(all_chunks(files)) == 6


def test_damage_is_found_wherever_it_happens(model: Path, target: Path) -> None:
    files = list_files(model, CHUNK)
    copy = StagedCopy(files, target, NODES[0])
    with pytest.raises(ClusterError, match=r"w\.safetensors arrived damaged, or it changed"):
        copy.take(3, np.zeros(CHUNK, np.uint8))
    take_all(copy, model, files)
    part = next(target.parent.glob(".*.part"))
    (part / "w.safetensors").write_bytes(bytes(2560))
    with pytest.raises(ClusterError, match="does not verify"):
        copy.finish()
    assert list(target.parent.iterdir()) == []
    take_all(copy, model, files)
    copy.finish()
    (target / "w.safetensors").write_bytes(bytes(2560))
    assert copy.find(NOWHERE, NODES) == Held(None)
    assert not target.exists()


def test_what_cannot_be_staged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="does not exist on this node"):
        list_files(tmp_path / "absent")
    folder = folder_of(tmp_path / "model")
    with pytest.raises(ClusterError, match="holds no files"):
        list_files(folder)
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(ClusterError, match="not a regular file, nor a link to one"):
        list_files(folder)
    (folder / "link").unlink()
    (folder / "link").symlink_to(tmp_path / "absent")
    with pytest.raises(ClusterError, match="cannot be read"):
        list_files(folder)


@pytest.mark.slow
def test_a_folder_that_a_node_has_is_used_in_place(two_nodes: Any, model: Path, target: Path) -> None:
    told: list[tuple[int, int]] = []
    staged = stage_folder(model, str(target.parent), lambda done, of: told.append((done, of)))
    assert staged.folders == {two_nodes.head: str(model), two_nodes.worker: str(model)}
    assert "on every node already" in staged.describe()
    assert told == []
    assert not target.parent.exists()


@pytest.mark.slow
def test_a_folder_is_sent_once_and_exchanged(two_nodes: Any, model: Path, target: Path) -> None:
    """Two nodes of one host copy to the same place at the same time: the hardest case for whose copy gets the name."""
    (model / "big").write_bytes(bytes(range(256)) * 8192)
    files = list_files(model, 256 << 10)
    total = sum(file.size for file in files)
    target = target.with_name(content_hash(files))
    told: list[tuple[int, int]] = []
    nodes = [two_nodes.head, two_nodes.worker]
    staged = send_folder(model, files, str(target), nodes, lambda done, of: told.append((done, of)))
    assert staged.folders == {node: str(target) for node in nodes}
    assert (staged.receivers, staged.sent, staged.exchanged) == (2, total, total)
    assert told[-1] == (2 * total, 2 * total)
    assert list_files(target, 256 << 10) == files
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.slow
def test_a_folder_that_changes_meanwhile_is_never_taken_for_whole(two_nodes: Any, model: Path, target: Path) -> None:
    files = list_files(model)
    (model / "w.safetensors").write_bytes(bytes(2560))
    with pytest.raises(ClusterError, match="arrived damaged, or it changed"):
        send_folder(model, files, str(target), [two_nodes.worker, two_nodes.head])
    assert not target.exists()
