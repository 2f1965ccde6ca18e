"""Starts a trial as a process of `gemfleet train` or `gemfleet resume`, as a person would."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from gemfleet.cluster.driver import is_locked
from gemfleet.launcher.runs.sweeps import CONFIG_FILE, Sweep, Trial, sweep_folder
from gemfleet.train.errors import EXIT_BAD_INPUT


class TrialProcesses:
    """The processes that this sweep's process has started. They live on when it is killed.

    ray_address: of the cluster for all trials
    """

    def __init__(self, home: Path, sweep: Sweep, ray_address: str) -> None:
        self._home, self._sweep = home, sweep
        self._folder = sweep_folder(home, sweep.id)
        self._environment = {
            **os.environ,
            "GEMFLEET_HOME": str(home),
            "RAY_ADDRESS": ray_address,
            "PYTHONUNBUFFERED": "1",
        }
        self._started: dict[int, subprocess.Popen[bytes]] = {}

    def train(self, trial: Trial) -> None:
        """Start a trial's run."""
        settings = [part for field, value in trial.settings.items() for part in ("--set", f"{field}={value}")]
        config = str(self._folder / CONFIG_FILE)
        self._start(trial, "train", config, "--id", self._sweep.run_id(trial), *settings)

    def resume(self, trial: Trial) -> None:
        """Go on with a run that has ended before its last step."""
        self._start(trial, "resume", self._sweep.run_id(trial))

    def was_started(self, trial: Trial) -> bool:
        """Whether this process has started the trial."""
        return trial.number in self._started

    def lives(self, trial: Trial) -> bool:
        """Whether the trial's process goes on, also one that an earlier process of this sweep has started."""
        process = self._started.get(trial.number)
        return process.poll() is None if process is not None else is_locked(self._log(trial))

    def refusal(self, trial: Trial, begun: bool) -> str:
        """Why the trial's process, started here, ended before it began; empty where it did not.

        begun: the run is in the registry; then only the exit code of bad input says so
        """
        process = self._started.get(trial.number)
        code = None if process is None else process.poll()
        if code is None or (begun and code != EXIT_BAD_INPUT):
            return ""
        lines = self._log(trial).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else f"its process ended with exit code {code}"

    def _start(self, trial: Trial, *arguments: str) -> None:
        """The process hears no Ctrl-C that is meant for the sweep: the sweep stops its run in order."""
        self._log(trial).parent.mkdir(exist_ok=True)
        with self._log(trial).open("ab") as log:
            with suppress(OSError):  # the process has the lock as long as it lives; some filesystems have none
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._started[trial.number] = subprocess.Popen(
                [sys.executable, "-m", "gemfleet.launcher.cli", *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _log(self, trial: Trial) -> Path:
        return self._folder / "logs" / f"{trial.number:03}.log"
