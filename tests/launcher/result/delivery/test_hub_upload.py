"""Uploads to Hugging Face: what is asked of its client, and how a refusal is told. No network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from gemfleet.launcher.config.schema import DeliverConfig
from gemfleet.launcher.result.delivery.deliver import deliver_folder
from gemfleet.launcher.result.delivery.errors import DeliveryError


class FakeHub:
    """Stands in for HfApi; remembers its calls."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._error = error

    def create_repo(self, repository: str, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create_repo", (repository, private, exist_ok)))

    def create_branch(self, repository: str, branch: str, exist_ok: bool) -> None:
        self.calls.append(("create_branch", (repository, branch, exist_ok)))

    def upload_folder(self, **arguments: Any) -> SimpleNamespace:
        if self._error:
            raise self._error
        self.calls.append(("upload_folder", arguments))
        return SimpleNamespace(oid="0123456789abcdef")


def deliver(folder: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return deliver_folder(folder, DeliverConfig(type="hub", repository="group/name", branch="next"), "run-1")


def test_a_new_repository_is_private_and_the_upload_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    assert deliver(tmp_path, hub, monkeypatch) == "delivered to group/name, branch next, commit 0123456789ab"
    assert hub.calls[:2] == [
        ("create_repo", ("group/name", True, True)),
        ("create_branch", ("group/name", "next", True)),
    ]
    name, arguments = hub.calls[2]
    assert (name, arguments["folder_path"], arguments["revision"]) == ("upload_folder", tmp_path, "next")


def test_a_refusal_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(OSError("no route to the hub\nsecond line"))
    with pytest.raises(DeliveryError, match=r"upload to group/name on Hugging Face failed \(no route to the hub\)"):
        deliver(tmp_path, hub, monkeypatch)
