"""`gemfleet` as a process of its own, as a person starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.train.errors import UserError

COMMAND = (sys.executable, "-m", "gemfleet.launcher.cli")
WAIT_SECONDS = 300.0


def gemfleet(folder: Path, home: Path, *arguments: str, output: Any) -> subprocess.Popen[bytes]:
    """Started in `folder`, with runs below `home`; what it prints goes to `output`."""
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, env=environment(home), stdout=output, stderr=subprocess.STDOUT
    )


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "GEMFLEET_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def last_line(log: Path) -> str:
    """Of what a command printed, to say why it ended."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


def wait_for_step(
    home: Path, process: subprocess.Popen[bytes], wanted: Callable[[dict[str, Any]], bool]
) -> tuple[RunRegistry, str, dict[str, Any]]:
    """The first reported step that is wanted, with its run. UserError if the command ends before it, or time does."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if (home / "gemfleet.db").exists():
            registry = RunRegistry(home / "gemfleet.db")
            for known in registry.list_runs():
                found = next((step for step in registry.metrics(known.id, kind="step") if wanted(step)), None)
                if found is not None:
                    return registry, known.id, found
        if process.poll() is not None:
            raise UserError(f"the command ended with code {process.returncode} before the step that was waited for")
        time.sleep(0.2)
    raise UserError(f"there was no such step within {WAIT_SECONDS:g} s")
