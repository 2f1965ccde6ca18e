"""A run as its phases see it: its id, its folder and its row in the registry."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gemfleet.cluster.driver import DriverLock
from gemfleet.cluster.errors import DiskFull, UnknownRun
from gemfleet.cluster.phases import PHASES
from gemfleet.cluster.registry.claims import Claims
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.config.load import dump_config
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.display import Display
from gemfleet.launcher.notices.start import tell
from gemfleet.launcher.runs.folder import LAUNCHED_FROM_FILE, RESOLVED_FILE, SETTLED_FILE, refuse_leftovers
from gemfleet.launcher.runs.log_order import log_stamp
from gemfleet.launcher.runs.names import new_run_id
from gemfleet.launcher.runs.registry import registry_of
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.config.schema import TrainConfig

from .beginning import Beginning, New, Resumed, Submitted
from .outcome import StoppedBeforeFit
from .signals import SIGNALS

ROOM_SECONDS = 600.0
END_ROOM_SECONDS = 20.0
STALL_SECONDS = 60.0


class RunSession:
    """One launch of a run.

    config: as the person wrote it; it never changes, and a phase that settles a value returns new settings
    claims: the run's share of the cluster; set when the driver is connected to it
    """

    claims: Claims

    def __init__(self, config: LaunchConfig, config_path: Path, display: Display, beginning: Beginning = New()) -> None:
        """Raises RunConflict where a new run's id is taken, or where another process carries out the run."""
        self.config, self.display, self.beginning = config, display, beginning
        self._said: set[str] = set()
        self._stalled_at = 0.0
        name = config.name or config_path.stem
        self.id = beginning.run_id or new_run_id(name)
        self.folder = gemfleet_home() / "runs" / self.id
        self.registry = registry_of(gemfleet_home())
        written = dump_config(config)
        self.is_new = not isinstance(beginning, Resumed) and config_path.parent != self.folder
        if isinstance(beginning, New):
            self._create_row(name, written, beginning)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = DriverLock(self.folder)
        try:
            self._take_row(written)
            self._lay_out(config_path, written)
        except BaseException:
            self.lock.close()
            raise

    @property
    def accepts_changes(self) -> bool:
        """Whether the run may continue from a checkpoint of other data, another base or other adapters."""
        return not isinstance(self.beginning, New) and self.beginning.accept_changes

    def _create_row(self, name: str, written: str, beginning: New) -> None:
        """Make the run's row. Of two processes that begin the same run at once, the second gets RunConflict."""
        try:
            self.registry.get_run(self.id)
        except UnknownRun:
            refuse_leftovers(self.folder)
        self.registry.create_run(self.id, name, written, os.getpid())
        if beginning.tags:
            self.registry.annotate(self.id, beginning.tags)

    def _take_row(self, written: str) -> None:
        if isinstance(self.beginning, Resumed):
            self.registry.reopen(self.id, written, os.getpid())
        elif isinstance(self.beginning, Submitted):
            self.registry.set_driver(self.id, os.getpid())

    def _lay_out(self, config_path: Path, written: str) -> None:
        """Fill the run's folder: the configuration as given, and with every value spelled out."""
        for left in self.folder.glob(".output-*"):  # a driver that was killed while it published left it
            shutil.rmtree(left, ignore_errors=True)
        for part in ("checkpoints", "logs"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        if config_path.parent != self.folder:
            shutil.copyfile(config_path, self.folder / f"config{config_path.suffix}")
        (self.folder / RESOLVED_FILE).write_text(written)
        (self.folder / SETTLED_FILE).unlink(missing_ok=True)
        (self.folder / LAUNCHED_FROM_FILE).write_text(f"{Path.cwd()}\n")

    def keep_settled(self, train: TrainConfig) -> None:
        """Keep the settings that the ranks train with, for trackers."""
        with suppress(OSError):
            settled = self.config.model_copy(update={"train": train})
            (self.folder / SETTLED_FILE).write_text(dump_config(settled))

    def enter(self, state: RunState, text: str) -> None:
        """Begin a phase. Raises KeyboardInterrupt for a signal that came before."""
        SIGNALS.heed()
        self.settle(state)
        self.display.phase(text)
        PHASES.enter(text)

    def settle(self, state: RunState, reason: str = "", room_seconds: float = ROOM_SECONDS) -> None:
        """Write the state, when the head's disk has room for it. Raises DiskFull if it has none for `room_seconds`."""
        deadline = time.monotonic() + room_seconds
        while True:
            try:
                self.registry.transition(self.id, state, reason)
                return
            except DiskFull as error:
                if time.monotonic() > deadline:
                    raise
                self.note_once(f"waits for room: {error}")
                time.sleep(1.0)

    def waits_for(self, text: str) -> None:
        """Say what the run waits for: on the screen, as an event, and in its row."""
        self.tell(EventKind.WAITING, text)
        self.registry.set_reason(self.id, text)

    def tell(self, kind: EventKind, text: str, facts: Mapping[str, Any] | None = None) -> None:
        """Say it as a note and as an event."""
        self.note(text)
        self.registry.add_event(self.id, kind, text, facts)

    def tell_of_stall(self, hangs: Sequence[Mapping[str, Any]]) -> None:
        """Tell webhooks of the run's newest hang. Ranks that hang together are one stall."""
        newest = max((float(event["time"]) for event in hangs), default=0.0)
        if newest > self._stalled_at + STALL_SECONDS:
            self._stalled_at = newest
            tell(gemfleet_home(), self.registry.get_run(self.id), "stalled")

    def note_once(self, text: str) -> None:
        """As `note`, the first time only."""
        if text not in self._said:
            self._said.add(text)
            self.note(text)

    def note(self, text: str) -> None:
        """Write a line on the screen and into the driver's log."""
        self.display.note(text)
        path = self.folder / "logs" / "driver.log"
        with suppress(OSError), path.open("a", encoding="utf-8") as file:  # a full disk does not end the run
            file.write(f"{log_stamp(time.time())} {text}\n")

    def heed_stop(self, doing: str = "waited for room") -> None:
        """Raise StoppedBeforeFit if somebody stopped the run. doing: what it did meanwhile, in the past tense"""
        SIGNALS.heed()
        if self.registry.stop_requested(self.id):
            raise StoppedBeforeFit(f"run {self.id} was stopped while it {doing}")
