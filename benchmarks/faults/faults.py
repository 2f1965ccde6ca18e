"""The faults that are caused: to whom, and what a person does about it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from gemfleet.cluster.registry.run_registry import RunRegistry

WATCHDOG_SECONDS = 8.0


@dataclass(frozen=True)
class Scene:
    """A run in the middle of training, and the process of the command that started it."""

    registry: RunRegistry
    run_id: str
    command: subprocess.Popen[bytes]
    chance: random.Random

    def signal_a_rank(self, number: signal.Signals) -> None:
        os.kill(self.chance.choice(self.registry.ranks(self.run_id))["pid"], number)


@dataclass(frozen=True)
class Fault:
    """cause: None where nothing is done; resumes: a person then says `gemfleet resume`;
    restarts: ranks go on from a checkpoint; settings: of the run."""

    cause: Callable[[Scene], None] | None = None
    resumes: bool = False
    restarts: bool = True
    settings: tuple[str, ...] = ()


def kill_rank(scene: Scene) -> None:
    scene.signal_a_rank(signal.SIGKILL)


def stop_rank(scene: Scene) -> None:
    """The rank hangs; its watchdog finds it and ends it."""
    scene.signal_a_rank(signal.SIGSTOP)


def kill_driver(scene: Scene) -> None:
    scene.command.kill()
    scene.command.wait()
    scene.registry.mark_interrupted()  # as the next command on the head does


def terminate(scene: Scene) -> None:
    """As `ray job stop` does: a checkpoint after the current step, then the end."""
    scene.command.terminate()
    scene.command.wait()


def kill_store(scene: Scene) -> None:
    import ray

    store = ray.get_actor(f"gemfleet-store-{scene.run_id}", namespace="gemfleet")
    ray.kill(store, no_restart=False)


UNDISTURBED = "undisturbed"
WATCHDOG = tuple(f"cluster.watchdog.{phase}_s={WATCHDOG_SECONDS}" for phase in ("step", "evaluate", "save"))
FAULTS = {
    UNDISTURBED: Fault(),
    "rank-killed": Fault(kill_rank),
    "rank-hangs": Fault(stop_rank, settings=WATCHDOG),
    "driver-killed": Fault(kill_driver, resumes=True),
    "terminated": Fault(terminate, resumes=True),
    "store-killed": Fault(kill_store, restarts=False),
}
