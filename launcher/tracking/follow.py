"""The process that keeps one tracker up to date: it follows a run in the registry.

A process of its own per tracker, because a tracker's package may hang, and may ask to be waited for when a process
ends. The registry is its queue: records wait there while a tracker does not answer, and memory stays bounded. It is
started by the driver with the driver's environment, which holds the credentials, and ends with the run or the driver.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemfleet.cluster.errors import ClusterError
from gemfleet.cluster.private import keep_private
from gemfleet.cluster.redaction import clean_text
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.launcher.config.reports import TrackerConfig
from gemfleet.launcher.runs.folder import RESOLVED_FILE, SETTLED_FILE
from gemfleet.launcher.runs.registry import registry_of
from gemfleet.train.step.record import points

from .parameters import parameters_of
from .state import TrackerState, result_files
from .tracker import Points, Tracker, mlflow_uri, place_of

LOOK_SECONDS = 2.0
MOST_PAUSE_SECONDS = 60.0
PAGE = 500  # records that are in memory at once
MARK_SECONDS = 3.0


class Follower:
    """Follows one run for one tracker. driver: a descriptor that reaches its end when the driver has ended the run"""

    def __init__(self, registry: RunRegistry, run_id: str, config: TrackerConfig, driver: int) -> None:
        self._registry, self._run_id, self._config, self._driver = registry, run_id, config, driver
        self._folder = registry.path.parent / "runs" / run_id
        self._state = replace(TrackerState(config.type, place_of(config)).read(self._folder), problem="", done=False)
        self._tracker: Tracker | None = None
        self._settings = ""  # those that the tracker has
        self._said: set[str] = set()
        self._pause = LOOK_SECONDS

    def run(self) -> None:
        """Follow to the end of the run. Wait first for the process of a driver that was killed."""
        with self._state.held(self._folder) as holds:
            while not holds():
                if self._driver_has_ended():
                    return
            self._state = replace(self._state.read(self._folder), problem="", done=False)
            self._follow()

    def _follow(self) -> None:
        self._attempt(self._send)
        while not self._driver_has_ended():
            self._attempt(self._send)
        state = self._last_state()
        if state is not None and self._attempt(self._send) and self._attempt(lambda: self._finish(state)):
            self._keep(done=True)

    def _driver_has_ended(self) -> bool:
        return bool(select.select([self._driver], [], [], self._pause)[0])

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Do it, and return whether it went well. The first problem is an event, and so is its end."""
        try:
            action()
        except Exception as error:
            self._pause = min(2 * self._pause, MOST_PAUSE_SECONDS)
            self._keep(problem=_reason(error))
            self._tell_once("does not take records", f"({self._state.problem}); they wait, and the run goes on")
            return False
        self._pause = LOOK_SECONDS
        if self._state.problem:
            self._keep(problem="")
        if self._said:
            self._tell_once("takes records again")
        return True

    def _send(self) -> None:
        """Bring the tracker up to date. Raises what the tracker raises."""
        tracker = self._opened()
        self._send_settings(tracker, SETTLED_FILE)
        while True:
            steps = self._records("step", PAGE)
            last = steps[-1]["step"] if len(steps) == PAGE else None
            scored = [record for record in self._records("eval", PAGE) if last is None or record["step"] <= last]
            records = sorted([*steps, *scored], key=lambda record: record["step"])  # stable: a step before its score
            if not records:
                return
            tracker.log([Points(r["step"], r.get("time", time.time()), dict(points(r))) for r in records])
            newest = {record["kind"]: record["step"] for record in records}
            self._keep(sent={**self._state.sent, **newest}, problem="")

    def _opened(self) -> Tracker:
        if self._tracker is None:
            tracker = make_tracker(self._config, self._run_id, self._folder / "trackers")
            there = tracker.open(self._state.id)
            if there.id != self._state.id:
                self._keep(id=there.id, link=there.link, sent={})
                self._tell(f"follows the run{f': {there.link}' if there.link else ''}")
            if there.last is not None:  # what it was given, but does not have, is sent again
                self._keep(sent={kind: min(step, there.last) for kind, step in self._state.sent.items()})
            self._tracker = tracker
        return self._tracker

    def _send_settings(self, tracker: Tracker, file: str) -> None:
        with suppress(FileNotFoundError):
            text = (self._folder / file).read_text(encoding="utf-8")
            if text != self._settings:
                tracker.parameters(parameters_of(text))
                self._settings = text

    def _finish(self, state: RunState) -> None:
        tracker = self._opened()
        if not self._settings:  # it ended before its settings were settled
            self._send_settings(tracker, RESOLVED_FILE)
        published = state in (RunState.SUCCEEDED, RunState.STOPPED)
        files = result_files(self._folder) if published else []
        tracker.finish(state, self._registry.get_run(self._run_id).reason, files)

    def _records(self, kind: str, limit: int) -> list[dict[str, Any]]:
        return self._registry.metrics(self._run_id, self._state.sent.get(kind, -1) + 1, kind, limit)

    def _last_state(self) -> RunState | None:
        """How the run ended. None where another driver has it now. Marks the run of a driver that was killed."""
        deadline = time.monotonic() + MARK_SECONDS
        while not (state := self._registry.get_run(self._run_id).state).is_terminal:
            if time.monotonic() > deadline:
                return None
            self._registry.mark_interrupted()
            time.sleep(0.1)
        return state

    def _keep(self, **changes: object) -> None:
        self._state = replace(self._state, **changes)  # type: ignore[arg-type]
        self._state.write(self._folder)

    def _tell_once(self, text: str, more: str = "") -> None:
        if text not in self._said:
            self._said.add(text)
            self._tell(f"{text} {more}".strip())

    def _tell(self, text: str) -> None:
        facts = {"tracker": self._config.type, "link": self._state.link}
        with suppress(ClusterError):  # for example a full disk
            self._registry.add_event(self._run_id, EventKind.TRACKER, f"{self._state.name} {text}", facts)


def make_tracker(config: TrackerConfig, run_id: str, folder: Path) -> Tracker:
    """The tracker of a run. folder: for what the tracker keeps on this disk"""
    from .mlflow_tracker import MlflowTracker
    from .wandb_tracker import WandbTracker

    if config.type == "wandb":
        return WandbTracker(config, run_id, folder)
    return MlflowTracker(mlflow_uri(config), config.experiment or "gemfleet", run_id)


def _reason(error: BaseException) -> str:
    """The innermost cause of the error in one line, without secrets."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    said = getattr(error, "strerror", None) or str(error).strip()
    return clean_text(said.splitlines()[0][:200] if said else type(error).__name__)


def main(home: str, run_id: str, config: str) -> None:
    """Follow a run. config: the tracker's, as JSON. The standard input ends with the run."""
    keep_private()
    with suppress(OSError):
        os.nice(10)
    Follower(registry_of(Path(home)), run_id, TrackerConfig.model_validate_json(config), sys.stdin.fileno()).run()
    os._exit(0)  # a package may wait for its server when Python ends


if __name__ == "__main__":
    main(*sys.argv[1:])
