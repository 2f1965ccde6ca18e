"""Whether the API stays a moment longer than a run: where somebody watches, and its cluster ends with the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from gemfleet.launcher.api import beside
from gemfleet.launcher.config import ApiConfig


@pytest.mark.parametrize(
    ("enabled", "ends_with_run", "watched", "waits"),
    [(True, True, True, True), (True, True, False, False), (True, False, True, False), (False, True, True, False)],
)
@pytest.mark.parametrize("fails", [False, True])
def test_the_end_waits_for_watchers_alone(
    monkeypatch: pytest.MonkeyPatch, enabled: bool, ends_with_run: bool, watched: bool, waits: bool, fails: bool
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(beside.time, "sleep", slept.append)
    monkeypatch.setattr(beside, "_is_watched", lambda home: watched)
    try:
        with beside.seen_to_the_end(Path("home"), ApiConfig(enabled=enabled), ends_with_run):
            assert slept == []
            if fails:
                raise ValueError("training failed")
    except ValueError:
        assert fails
    assert bool(slept) == waits


def test_an_api_that_cannot_be_asked_holds_nothing_up() -> None:
    assert beside._is_watched(Path("home")) is False  # Ray is not even there
