"""An object store that is slow, refuses or cuts connections: nothing is lost, and every error is one sentence.

Of all that rests in one: checkpoints, sources (models and data) and delivered results.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gemfleet.cluster.checkpoint_store.location import check_storage
from gemfleet.cluster.checkpoint_store.object_errors import said
from gemfleet.cluster.errors import ClusterError, StoreError
from gemfleet.launcher.result.delivery.errors import DeliveryError
from gemfleet.launcher.result.delivery.object_upload import MANIFEST, upload_folder_to_store
from gemfleet.launcher.sources.objects import fetch_objects, parse_object_address
from gemfleet.train.errors import UserError
from support.fault_table import tell
from support.places import REPOSITORY
from support.servers.faulty_proxy import Fault, FaultyProxy
from support.servers.object_faults import CASES, STORE_CASES, Case, disturbed, faults_table
from support.servers.object_store import STORES, Kept, commit, new_bucket, objects_below, put_objects, scheme_of

PARTS = bytes(range(256)) * 44_000  # 11 MB: S3 takes it in parts


def files(seed: bytes, weights: bytes = PARTS) -> dict[str, bytes]:
    return {"config.json": seed, "deep/weights": seed + weights, "deep/er/more": seed * 5000}


def writes(method: str, _: str) -> bool:
    return method in ("PUT", "POST")


class Checkpoints:
    """The second of two is disturbed."""

    error: type[Exception] = StoreError
    carries_content = staticmethod(writes)

    def __init__(self, store: str, folder: Path) -> None:
        self.kept = Kept.at(store, folder)
        self.disk = self.kept.open()
        self.disk.begin_attempt()
        commit(self.disk, 1, 1)

    def act(self) -> None:
        disk = self.kept.open()
        commit(disk, 2, 1, PARTS)

    def check(self, arrived: bool) -> None:
        shelf = self.kept.open().shelf
        assert [step for step in shelf.steps() if shelf.committed(step)] == ([1, 2] if arrived else [1])
        newest, damaged = shelf.newest_verified()
        assert newest is not None
        assert (newest.step, damaged) == (2 if arrived else 1, [])


class Sources:
    error: type[Exception] = UserError
    carries_content = staticmethod(lambda method, path: method == "GET" and "weights" in path)

    def __init__(self, store: str, folder: Path) -> None:
        self.address, self.cache = parse_object_address(f"{new_bucket(scheme_of(store))}/model"), folder / "cache"
        put_objects(
            self.address.scheme, {f"{self.address.path}/{name}": content for name, content in files(b"s").items()}
        )

    def act(self) -> None:
        assert content_of(fetch_objects(self.address, self.cache)) == files(b"s")

    def check(self, arrived: bool) -> None:
        """A copy is whole or absent."""
        copies = [content_of(folder) for folder in self.cache.glob("*/*/")]
        assert copies == ([files(b"s")] if arrived else [])


class Deliveries:
    """The second of two is disturbed."""

    error: type[Exception] = DeliveryError
    carries_content = staticmethod(writes)

    def __init__(self, store: str, folder: Path) -> None:
        self.address, self.output = parse_object_address(f"{new_bucket(scheme_of(store))}/result"), folder / "output"
        self._write(files(b"old", b"") | {"gone": b"old"})
        self.act()
        (self.output / "gone").unlink()
        self._write(files(b"new"))

    def act(self) -> None:
        upload_folder_to_store(self.output, self.address, "m", sleep=lambda seconds: None)

    def check(self, arrived: bool) -> None:
        """Where there is a manifest, there is everything that it lists."""
        there = objects_below(self.address.scheme, self.address.path)
        manifest = there.pop(MANIFEST, None)
        if manifest is not None:
            listed = {entry["path"]: entry["sha256"] for entry in json.loads(manifest)["files"]}
            assert {name: hashlib.sha256(content).hexdigest() for name, content in there.items()} == listed
        if arrived:
            assert manifest is not None
            assert there == files(b"new")

    def _write(self, content: dict[str, bytes]) -> None:
        for name, data in content.items():
            (self.output / name).parent.mkdir(parents=True, exist_ok=True)
            (self.output / name).write_bytes(data)


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


Kind = type[Checkpoints] | type[Sources] | type[Deliveries]


@pytest.mark.parametrize("kind", [Checkpoints, Sources, Deliveries])
@pytest.mark.parametrize(("store", "case"), STORE_CASES)
def test_what_a_fault_costs(
    kind: Kind,
    store: str,
    case: Case,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request.getfixturevalue(store)
    what = kind(store, tmp_path)
    with disturbed(store, case, monkeypatch) as proxy:
        proxy.fault = fault = case.fault(kind.carries_content)
        sentence = _sentence_of(what.act, what.error)
        proxy.fault = None
        assert fault.met > 0
        tell(f"{store}, {kind.__name__.lower()}: {case.name}", sentence or "arrived")
        what.check(arrived=sentence is None)
        assert (sentence is None) == (case.said is None), sentence
        if sentence is not None and case.said is not None:
            assert f"({case.said})" in sentence
            assert len(sentence) < 400
            assert "\n" not in sentence
        what.act()  # the next attempt, at a store that is well
        what.check(arrived=True)


def _sentence_of(act: Callable[[], None], error: type[Exception]) -> str | None:
    try:
        act()
    except error as refused:
        return str(refused)
    return None


@pytest.fixture(params=STORES)
def behind_proxy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, FaultyProxy]]:
    request.getfixturevalue(request.param)
    (always,) = (case for case in CASES if case.name == "503, always")
    with disturbed(request.param, always, monkeypatch) as proxy:
        yield request.param, proxy


def test_a_read_that_is_cut_off_is_damage_and_the_checkpoint_before_counts(
    behind_proxy: tuple[str, FaultyProxy], tmp_path: Path
) -> None:
    store, proxy = behind_proxy
    checkpoints = Checkpoints(store, tmp_path)
    checkpoints.act()
    proxy.fault = Fault("cut answer", meets=lambda method, path: method == "GET" and "checkpoint-2" in path)
    newest, damaged = checkpoints.kept.open().shelf.newest_verified()
    assert newest is not None
    assert newest.step == 1
    assert len(damaged) == 1
    proxy.fault = None
    checkpoints.check(arrived=True)


def test_a_listing_that_is_refused_is_no_empty_folder(behind_proxy: tuple[str, FaultyProxy], tmp_path: Path) -> None:
    store, proxy = behind_proxy
    sources, deliveries = Sources(store, tmp_path), Deliveries(store, tmp_path)
    proxy.fault = Fault("refuse", meets=lambda method, path: method == "GET" and "prefix=" in path)
    with pytest.raises(UserError, match="cannot be read"):
        sources.act()
    with pytest.raises(DeliveryError, match="failed 3 times"):
        deliveries.act()
    proxy.fault = None
    sources.check(arrived=False)
    deliveries.check(arrived=False)


@pytest.mark.usefixtures("s3rver")
def test_a_store_that_keeps_checksums_as_content_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, remedy = Kept.at("s3rver", tmp_path), "AWS_REQUEST_CHECKSUM_CALCULATION"
    check_storage(kept.storage, kept.run_folder)
    deliveries = Deliveries("s3rver", tmp_path)
    monkeypatch.delenv(remedy)
    with pytest.raises(ClusterError, match=f"place of 5; set {remedy}=when_required"):
        check_storage(kept.storage, kept.run_folder)
    with pytest.raises(DeliveryError, match=f"place of 3; set {remedy}=when_required"):
        deliveries.act()


def test_an_error_that_nobody_knows_keeps_its_text_in_one_line() -> None:
    assert said(OSError("it\nis   odd")) == "it is odd"
    assert len(said(OSError("x" * 5000))) == 300


def test_the_documentation_has_the_table_of_what_these_tests_assert() -> None:
    text = (REPOSITORY / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    assert faults_table() in text, f"put this into docs/checkpoints.md:\n{faults_table()}"
