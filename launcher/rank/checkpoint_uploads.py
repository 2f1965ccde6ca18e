"""Writes a rank's checkpoints and sends them to the head, in one thread, while the rank trains on."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.train.interfaces import WriteCheckpoint

log = logging.getLogger("gemfleet.launcher")
Send = Callable[[int, Path, Mapping[str, float]], None]
Tell = Callable[[Mapping[str, Any]], None]


class CheckpointUploads:
    """Sends one checkpoint at a time. `save` waits for the one before, so a slow head never has them pile up.

    A checkpoint that fails is told as an event, and training goes on: the one before it is still whole.

    send: gives a written folder to the store; raises when the checkpoint is lost
    work: an existing folder of this rank, for copies that are removed after they are sent
    tell: queues a record for the head
    """

    def __init__(self, send: Send, work: Path, tell: Tell) -> None:
        self._send, self._work, self._tell = send, work, tell
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._flight: Future[None] | None = None
        self.failed = False  # whether the newest checkpoint was lost

    def save(self, step: int, write: WriteCheckpoint, metrics: Mapping[str, float]) -> float:
        """Begin to write and send a checkpoint. Returns how many seconds it waited for the one before."""
        started = time.monotonic()
        self.wait()
        # In a list, so that the thread can drop the copied state as soon as it is written.
        self._flight = self._thread.submit(self._carry_out, step, [write], metrics)
        return time.monotonic() - started

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for the checkpoint that is being sent. Returns whether none is left."""
        return self._flight is None or not wait([self._flight], timeout_seconds).not_done

    def close(self, timeout_seconds: float) -> None:
        """Wait so long for the last checkpoint, then end the thread. Called also when training failed."""
        self.wait(timeout_seconds)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _carry_out(self, step: int, write: list[WriteCheckpoint], metrics: Mapping[str, float]) -> None:
        name, started = f"checkpoint-{step}", time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=self._work, ignore_cleanup_errors=True) as folder:
                write.pop()(Path(folder))
                self._send(step, Path(folder), metrics)
        except Exception as error:
            self.failed = True
            log.exception("%s did not reach the head", name)
            self._tell({"kind": "event", "event": EventKind.CHECKPOINT_FAILED, "message": f"{name} was lost: {error}"})
        else:
            self.failed = False
            log.info("%s is on the head after %.1f s", name, time.monotonic() - started)
