"""Whether the API stays a moment longer than a run: where somebody watches, and its cluster ends with the run."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.launcher.api import start
from gemfleet.launcher.config.schema import ApiConfig


@pytest.mark.parametrize(
    ("enabled", "ends_with_run", "watched", "waits"),
    [(True, True, True, True), (True, True, False, False), (True, False, True, False), (False, True, True, False)],
)
@pytest.mark.parametrize("fails", [False, True])
def test_the_end_waits_for_watchers_alone(
    monkeypatch: pytest.MonkeyPatch, enabled: bool, ends_with_run: bool, watched: bool, waits: bool, fails: bool
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(start, "_is_watched", lambda home: watched)
    try:
        with start.seen_to_the_end(Path("home"), ApiConfig(enabled=enabled), ends_with_run):
            assert slept == []
            if fails:
                raise ValueError("training failed")
    except ValueError:
        assert fails
    assert bool(slept) == waits


def test_an_api_that_cannot_be_asked_holds_nothing_up() -> None:
    assert start._is_watched(Path("home")) is False  # Ray is not even there


def test_no_thread_asks_ray_any_more_when_a_run_ends_before_the_api_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends a process of which a thread asks it while it shuts down: the run's own words would be lost."""
    actor = SimpleNamespace(facts=SimpleNamespace(remote=lambda: "reference"))
    asked: list[float] = []

    def silent(references: object, timeout: float) -> tuple[list[str], object]:
        asked.append(time.monotonic() + timeout)
        time.sleep(timeout)
        return [], references

    monkeypatch.setattr(start, "start_api", lambda home, config: actor)
    monkeypatch.setattr(ray, "wait", silent)
    monkeypatch.setattr(ray, "get", lambda reference, timeout: silent(reference, timeout))
    told: list[str] = []

    def run() -> None:
        with start.status_api(Path("home"), ApiConfig(), "/", told.append):
            time.sleep(0.05)
            raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        run()
    assert not told
    assert asked
    assert max(asked) <= time.monotonic()


@pytest.mark.parametrize("error", [RuntimeError("no memory"), KeyboardInterrupt()])
def test_the_end_is_told_before_the_cluster_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """A page hears of it from an API that lives in the cluster."""
    from gemfleet.launcher.config.schema import LaunchConfig
    from gemfleet.launcher.display import PlainDisplay
    from gemfleet.launcher.run import launch as launcher_run

    monkeypatch.setenv("GEMFLEET_HOME", str(tmp_path))
    (tmp_path / "run.yaml").touch()
    states: list[str] = []

    @contextmanager
    def cluster(config: object) -> Iterator[bool]:
        try:
            yield True
        finally:
            states.append(RunRegistry(tmp_path / "gemfleet.db").list_runs()[0].state)

    def fails(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(launcher_run, "check_everything", lambda config: None)
    monkeypatch.setattr(launcher_run, "connected", cluster)
    monkeypatch.setattr(launcher_run, "Claims", fails)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="here"))
    config = LaunchConfig.model_validate({"train": {"model": "demo", "data": {"train": "demo"}}})
    with pytest.raises(type(error)):
        launcher_run.launch(config, tmp_path / "run.yaml", PlainDisplay(io.StringIO()))
    assert states == ["failed" if isinstance(error, RuntimeError) else "interrupted"]
