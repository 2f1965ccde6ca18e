"""Sends a rank's records to the head in batches, from a thread of its own, so that training never waits for it."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from gemfleet.cluster.registry.event_kinds import EventKind

Record = Mapping[str, Any]
INTERVAL_SECONDS = 0.5
CAPACITY = 100_000
BATCH = 2_000


class Outbox:
    """Collects records and gives them to `send` about twice a second.

    `send` takes a batch and its mark, and returns whether somebody asked the run to stop. A batch that failed is sent
    again first, unchanged and with the same mark. Empty batches are sent too, because the answer tells the rank when to
    stop. While the head does not answer, records wait; beyond `CAPACITY` the oldest are dropped. Never raises.
    """

    def __init__(self, send: Callable[[list[Record], str], bool], interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._send = send
        self._interval = interval_seconds
        self._records: deque[Record] = deque(maxlen=CAPACITY)
        self._batch: list[Record] | None = None
        name = uuid.uuid4().hex
        self._marks = (f"{name}-{number}" for number in itertools.count())
        self._mark = ""
        self._sending = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._stop_wanted = False
        self._thread = threading.Thread(target=self._run, name="gemfleet-outbox", daemon=True)
        self._thread.start()

    @property
    def stop_wanted(self) -> bool:
        """Whether the head has asked this rank to stop. Once True, it stays True."""
        return self._stop_wanted

    def put(self, record: Record) -> None:
        """Queue one record. Returns at once."""
        self._records.append(record)

    def event(self, kind: EventKind, message: str, **data: Any) -> None:
        """Queue an event of the run. Returns at once."""
        self.put({"kind": "event", "event": kind, "message": message, **data})

    def flush(self, timeout_seconds: float = 30.0) -> bool:
        """Wait until all records queued so far have arrived. False when they have not in time."""
        deadline = time.monotonic() + timeout_seconds
        with self._sending:
            waiting = math.ceil(len(self._records) / BATCH) + (self._batch is not None)
        while waiting > 0:
            if self._send_once():
                waiting -= 1
            elif time.monotonic() > deadline:
                return False
            else:
                time.sleep(0.05)
        return True

    def close(self, timeout_seconds: float = 30.0) -> None:
        """Flush, then end the thread."""
        self.flush(timeout_seconds)
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._closed:
            self._send_once()
            self._wake.wait(self._interval)

    def _send_once(self) -> bool:
        """Send the batch that failed last, else the next one. Returns whether it has arrived."""
        with self._sending:
            if self._batch is None:
                self._batch = [self._records.popleft() for _ in range(min(BATCH, len(self._records)))]
                self._mark = next(self._marks)
            try:
                self._stop_wanted = bool(self._send(self._batch, self._mark)) or self._stop_wanted
            except Exception:
                return False
            self._batch = None
            return True


class OutboxLogHandler(logging.Handler):
    """Puts this rank's log lines into the outbox, as records of kind `log`."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(level=logging.INFO)
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
            self._outbox.put({"kind": "log", "time": record.created, "level": record.levelname, "line": line})
        except Exception:
            self.handleError(record)
