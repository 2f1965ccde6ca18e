"""Starts and ends the processes that follow a run for its trackers. No tracker holds the run up."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from gemfleet.cluster.errors import ClusterError
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.launcher.config.reports import TrackerConfig

from .state import TrackerState, result_files
from .tracker import place_of, upload_seconds

SILENT_SECONDS = 0.5  # at the end, for a tracker that does not answer
STUCK_SECONDS = 60.0  # at the end, for one that takes nothing and has no problem; more for files
MOST_SECONDS = 600.0  # at the end, for one that makes progress
POLL_SECONDS = 0.05
SAY_SECONDS = 3.0


@contextmanager
def tracked(
    registry: RunRegistry, run_id: str, trackers: Sequence[TrackerConfig], note: Callable[[str], None]
) -> Iterator[None]:
    """Have all trackers follow a run while the block runs, at whose end the run has ended.

    Waits at the end for trackers that still take records, and says as an event what a tracker did not take.
    """
    followers = []
    for config in trackers:
        try:
            followers.append(_Following(registry, run_id, config))
        except OSError as error:  # no more processes; the run goes on
            note(f"no process follows the run for {config.type}: {error}")
    try:
        yield
    finally:
        for follower in followers:
            follower.run_has_ended()
        for follower in followers:
            follower.wait(note)


class _Following:
    """The process of one tracker."""

    def __init__(self, registry: RunRegistry, run_id: str, config: TrackerConfig) -> None:
        self._registry, self._run_id = registry, run_id
        self._folder = registry.path.parent / "runs" / run_id
        self._tracker = TrackerState(config.type, place_of(config))
        replace(self._state(), problem="", done=False).write(self._folder)  # those of an earlier launch
        home = str(registry.path.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gemfleet.launcher.tracking.follow", home, run_id, config.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # what packages print may hold secrets; events say what went wrong
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is for the driver
            cwd=home,
        )

    def run_has_ended(self) -> None:
        """Let the process send the rest and end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._ended = time.monotonic()

    def wait(self, note: Callable[[str], None]) -> None:
        """Wait while the tracker takes records. Then say what it did not take."""
        said = False
        seen, changed = self._state(), self._ended
        stuck = STUCK_SECONDS + upload_seconds(result_files(self._folder))
        while self._process.poll() is None:
            now, state = time.monotonic(), self._state()
            seconds = now - self._ended
            if state != seen:
                seen, changed = state, now
            if now - changed > stuck and not state.problem:
                replace(state, problem=f"it took nothing for {stuck:.0f} s").write(self._folder)
            if seconds > (SILENT_SECONDS if self._state().problem else MOST_SECONDS):
                self._process.kill()
                self._process.wait()
            elif seconds > SAY_SECONDS and not said:
                note(f"{self._tracker.name} takes the last records and the result")
                said = True
            time.sleep(POLL_SECONDS)
        if not self._state().done:
            self._tell_lost(note)

    def _state(self) -> TrackerState:
        return self._tracker.read(self._folder)

    def _tell_lost(self, note: Callable[[str], None]) -> None:
        state = self._state()
        last = (self._registry.latest_metrics(self._run_id, "step") or {}).get("step", 0)
        lost = max(0, last - state.sent.get("step", 0))
        why = f" ({state.problem})" if state.problem else ""
        what = f"lacks {lost} of {last} steps and the end of the run" if lost else "lacks the end of the run"
        text = f"{state.name} {what}{why}; `gemfleet track {self._run_id}` sends it again"
        note(text)
        facts = {"tracker": state.type, "lost_steps": lost}
        with suppress(ClusterError):  # for example a full disk
            self._registry.add_event(self._run_id, EventKind.TRACKER, text, facts)
