"""Several runs on one cluster of two places: one after another, with the reason shown, and cancelled while it waits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gemfleet.cluster.registry.run_registry import Run, RunRegistry
from support.tiny_run import ends, gemfleet, local_ray, make_workplace, start, states, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_runs_wait_for_their_turn(tmp_path: Path) -> None:
    workplace, home = make_workplace(tmp_path / "work"), tmp_path / "home"
    with local_ray(cpus=2) as address:
        first = start(workplace, home, address, 1000.0, ("name=first",))
        registry = wait_for_step(home, 2)
        second = start(workplace, home, address, 0.2, ("name=second",))
        run = wait_for(registry, "second", lambda run: "waits for room beside first-" in run.reason)
        assert str(run.state) == "queued"
        assert "asked for 2 workers" in run.reason
        third = start(workplace, home, address, 0.2, ("name=third",))
        wait_for(registry, "third", lambda third: third.reason == f"number 2 in the queue, behind run {run.id}")
        shown = json.loads(ends(gemfleet(workplace, home, "show", "third", "--json")))
        assert (shown["state"], shown["reason"][:8]) == ("queued", "number 2")
        ends(gemfleet(workplace, home, "stop", "third"))
        assert "stopped while it waited for room" in ends(third)
        assert str(named(registry, "third").state) == "stopped"
        assert states(registry, named(registry, "third").id) == ["queued", "stopped"]
        ends(gemfleet(workplace, home, "stop", "first"))
        ends(first)
        ends(second)
    assert [str(named(registry, name).state) for name in ("first", "second")] == ["stopped", "succeeded"]
    waited = [event["message"] for event in registry.events(named(registry, "second").id) if event["kind"] == "waiting"]
    assert len(waited) >= 1


def named(registry: RunRegistry, name: str) -> Run:
    return registry.find_run(f"{name}-")


def wait_for(registry: RunRegistry, name: str, condition: Callable[[Run], bool], seconds: float = 120.0) -> Run:
    deadline = time.monotonic() + seconds
    while True:
        runs = [run for run in registry.list_runs() if run.name == name]
        if runs and condition(runs[0]):
            return runs[0]
        assert time.monotonic() < deadline, f"{name}: {runs}"
        time.sleep(0.2)
