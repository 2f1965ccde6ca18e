"""The faults that are caused: to whom, and what a person does about it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable
from typing import NamedTuple

from gemfleet.cluster.registry.run_registry import RunRegistry

WATCHDOG_SECONDS = 8.0


class Scene(NamedTuple):
    """A run in the middle of training, and the process of the command that started it; what can be done to them."""

    registry: RunRegistry
    run_id: str
    command: subprocess.Popen[bytes]
    chance: random.Random

    def kill_rank(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.chance.choice(self.registry.ranks(self.run_id))["pid"], number)

    def stop_rank(self) -> None:
        """The rank hangs; its watchdog finds it and ends it."""
        self.kill_rank(signal.SIGSTOP)

    def kill_driver(self) -> None:
        self.command.kill()
        self.command.wait()
        self.registry.mark_interrupted()  # as the next command on the head does

    def terminate(self) -> None:
        """As `ray job stop` does: a checkpoint after the current step, then the end."""
        self.command.terminate()
        self.command.wait()

    def kill_store(self) -> None:
        import ray

        ray.kill(ray.get_actor(f"gemfleet-store-{self.run_id}", namespace="gemfleet"), no_restart=False)


class Fault(NamedTuple):
    """cause: None where nothing is done; resumes: a person then says `gemfleet resume`;
    restarts: ranks go on from a checkpoint; settings: of the run."""

    cause: Callable[[Scene], None] | None = None
    resumes: bool = False
    restarts: bool = True
    settings: tuple[str, ...] = ()


UNDISTURBED = "undisturbed"
WATCHDOG = tuple(f"cluster.watchdog.{phase}_s={WATCHDOG_SECONDS}" for phase in ("step", "evaluate", "save"))
FAULTS = {
    UNDISTURBED: Fault(),
    "rank-killed": Fault(Scene.kill_rank),
    "rank-hangs": Fault(Scene.stop_rank, settings=WATCHDOG),
    "driver-killed": Fault(Scene.kill_driver, resumes=True),
    "terminated": Fault(Scene.terminate, resumes=True),
    "store-killed": Fault(Scene.kill_store, restarts=False),
}
