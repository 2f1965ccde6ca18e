"""Deliveries to an object store: complete where there is a manifest, and completed by the next attempt where not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.checkpoint_store import location
from gemfleet.launcher.config.schema import DeliverConfig
from gemfleet.launcher.result.delivery import object_upload
from gemfleet.launcher.result.delivery.deliver import check_delivery, deliver_folder
from gemfleet.launcher.result.delivery.errors import DeliveryError
from gemfleet.launcher.result.delivery.object_upload import MANIFEST, upload_folder_to_store
from gemfleet.launcher.sources.objects import parse_object_address
from gemfleet.train.errors import UserError
from support.servers.s3_objects import one_bucket, put, stored

HERE = DeliverConfig(type="s3", repository="s3://bucket/results", branch="test-2")


@pytest.fixture
def s3() -> Iterator[None]:
    with one_bucket():
        yield


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    (folder / "checkpoint-3").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 40_000)
    (folder / "checkpoint-3" / "data_state.json").write_text("{}")
    (folder / "README.md").write_text("# 어댑터\n", encoding="utf-8")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("s3")
def test_everything_arrives_with_a_manifest_that_lists_it(output: Path) -> None:
    put({"results/test-20/other": b"not ours"})
    assert deliver_folder(output, HERE, "run-1") == "delivered to s3://bucket/results/test-2, 3 files"
    there = stored()
    assert there.pop("results/test-20/other") == b"not ours"
    manifest = json.loads(there.pop(f"results/test-2/{MANIFEST}"))
    assert {key.removeprefix("results/test-2/"): value for key, value in there.items()} == content(output)
    listed = {entry["path"]: (entry["bytes"], entry["sha256"]) for entry in manifest["files"]}
    assert listed == {name: (len(b), hashlib.sha256(b).hexdigest()) for name, b in content(output).items()}
    assert manifest["message"] == "Adapter of the run run-1"


@pytest.mark.usefixtures("s3")
def test_a_later_delivery_leaves_nothing_of_the_one_before(output: Path) -> None:
    deliver_folder(output, HERE, "run-1")
    (output / "checkpoint-3" / "data_state.json").unlink()
    (output / "README.md").write_text("new")
    deliver_folder(output, HERE, "run-2")
    assert set(stored()) == {f"results/test-2/{name}" for name in (*content(output), MANIFEST)}
    assert stored()["results/test-2/README.md"] == b"new"


@pytest.mark.usefixtures("s3")
def test_an_interrupted_upload_has_no_manifest_and_is_completed(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver_folder(output, HERE, "run-1")
    before, send = content(output), object_upload._send

    def breaks_off(store: Any, path: Path, key: str) -> tuple[int, str]:
        if path.name == "data_state.json":
            raise OSError("connection lost")
        return send(store, path, key)

    monkeypatch.setattr(object_upload, "_send", breaks_off)
    waits: list[float] = []
    address = parse_object_address("s3://bucket/results/test-2")
    with pytest.raises(DeliveryError, match=r"the upload to s3://.* failed 3 times \(connection lost\)"):
        upload_folder_to_store(output, address, "again", sleep=waits.append)
    assert waits == [2.0, 8.0]
    assert f"results/test-2/{MANIFEST}" not in stored()
    assert content(output) == before
    monkeypatch.setattr(object_upload, "_send", send)
    deliver_folder(output, HERE, "run-1")
    assert len(json.loads(stored()[f"results/test-2/{MANIFEST}"])["files"]) == 3


def test_a_server_that_is_gone_is_reported(s3: None, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(location, "ATTEMPTS", 2)  # of the client's own, below the three that are counted here
    with pytest.raises(DeliveryError, match="failed 3 times"):
        upload_folder_to_store(output, parse_object_address("s3://bucket/x"), "m", sleep=lambda seconds: None)


def test_wrong_addresses_are_refused_before_anything_starts() -> None:
    with pytest.raises(UserError, match="not an address"):
        check_delivery(DeliverConfig(type="s3", repository="s3://bucket/../x"))
    with pytest.raises(UserError, match="begins with s3://"):
        check_delivery(DeliverConfig(type="s3", repository="gs://bucket/x"))
