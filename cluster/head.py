"""Actors on the head node, where the disk of record is. Every node finds them by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray
import ray.exceptions

from .errors import ClusterError, StoreError
from .inventory import HEAD_RESOURCE

NAMESPACE = "gemfleet"
RETRY_SECONDS = 60.0
NAME_SECONDS = 15.0
Value = TypeVar("Value")


def on_head(name: str, threads: int) -> dict[str, Any]:
    """Options of an actor on the head that Ray restarts when it dies.

    A tiny share of the head's own resource pins it there, so that it takes no CPU from training.
    """
    return {
        "name": name,
        "namespace": NAMESPACE,
        "num_cpus": 0,
        "resources": {HEAD_RESOURCE: 0.001},
        "max_restarts": -1,
        "max_concurrency": threads,
    }


def actor_on_head(name: str) -> Any:
    """Ray's handle of the actor with this name. ValueError when there is none."""
    return ray.get_actor(name, namespace=NAMESPACE)


def start_on_head(
    actor_class: Any, name: str, *arguments: Any, threads: int = 8, waits: str | None = None
) -> HeadActor:
    """Creates an actor of `actor_class` on the head under `name`. ClusterError when the name is in use.

    The actor ends with the driver's job, or when the object returned here (not a copy of it) is gone.
    waits: the group of its methods that wait, which have one more thread
    """
    options = {**on_head(name, threads), "max_task_retries": 0}
    remote = ray.remote(actor_class) if waits is None else ray.remote(concurrency_groups={waits: 1})(actor_class)
    deadline = time.monotonic() + NAME_SECONDS
    while True:
        try:
            return HeadActor(name, remote.options(**options).remote(*arguments))
        except ValueError as error:
            if time.monotonic() > deadline:
                message = f"{name} is running already, for another driver of this run; end that one first"
                raise ClusterError(message) from error
            time.sleep(0.5)  # Ray may still be ending the actors of a driver that was killed a moment ago


class HeadActor:
    """A head actor by its name. Picklable; it finds the actor again after a restart.

    `call` waits for a restart up to `RETRY_SECONDS`, so it may run a method twice. All methods called here allow that.
    """

    def __init__(self, name: str, original: Any = None) -> None:
        """`original`: the handle that Ray gave the creator. Ray ends the actor when this handle is gone."""
        self.name = name
        self._original = original
        self._handle: Any = original

    def __reduce__(self) -> tuple[type[HeadActor], tuple[str]]:
        return HeadActor, (self.name,)

    @property
    def handle(self) -> Any:
        """Ray's handle of the actor. ValueError when it is not there."""
        if self._handle is None:
            self._handle = actor_on_head(self.name)
        return self._handle

    def call(self, method: str, *arguments: Any) -> Any:
        """The method's result. Raises the method's own errors, and StoreError when the actor stays unreachable."""
        return self._retry(method, lambda: ray.get(getattr(self.handle, method).remote(*arguments)))

    def _retry(self, method: str, attempt: Callable[[], Value]) -> Value:
        deadline, pause = time.monotonic() + RETRY_SECONDS, 0.1
        while True:
            try:
                return attempt()
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise cause if isinstance(cause, Exception) else error from None
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError, ValueError) as error:
                self._handle = None
                if time.monotonic() > deadline:
                    message = f"{self.name} on the head did not answer {method} for {RETRY_SECONDS:g} s"
                    raise StoreError(message) from error
                time.sleep(pause)
                pause = min(2 * pause, 2.0)
