"""The outbox: nothing lost while the head is away, nothing raised into training, the stop flag brought back."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gemfleet.launcher.rank.outbox import Outbox, OutboxLogHandler


class Head:
    """A hand-written head: can be away, remembers what arrived in order."""

    def __init__(self) -> None:
        self.arrived: list[Any] = []
        self.marks: list[str] = []
        self.away = False
        self.stop = False

    def take(self, batch: list[Any], mark: str) -> bool:
        self.marks.append(mark)
        if self.away:
            raise ConnectionError("away")
        self.arrived += batch
        return self.stop


@contextmanager
def outbox_to(head: Head) -> Iterator[Outbox]:
    outbox = Outbox(head.take, interval_seconds=0.01)
    yield outbox
    outbox.close(timeout_seconds=1.0)


def test_order_is_kept_over_an_absence_of_the_head() -> None:
    head = Head()
    with outbox_to(head) as outbox:
        head.away = True
        for number in range(50):
            outbox.put({"number": number})
        assert not outbox.flush(timeout_seconds=0.1)
        head.away = False
        assert outbox.flush(timeout_seconds=5.0)
    assert [record["number"] for record in head.arrived] == list(range(50))


def test_a_batch_without_an_answer_is_sent_again_as_it_was() -> None:
    """Under the mark it had, so that a head that took it knows it; what was put meanwhile goes with the next."""
    sent: list[tuple[str, list[Any]]] = []
    answers = iter([False, True])

    def take(batch: list[Any], mark: str) -> bool:
        sent.append((mark, list(batch)))
        if batch and not next(answers, True):
            outbox.put("later")  # type: ignore[arg-type]
            raise ConnectionError("the answer was lost")
        return False

    outbox = Outbox(take, interval_seconds=60.0)
    outbox.put("first")  # type: ignore[arg-type]
    outbox.flush()
    outbox.close()
    told = [(mark, batch) for mark, batch in sent if batch]
    assert [batch for _, batch in told] == [["first"], ["first"], ["later"]]
    assert told[0][0] == told[1][0] != told[2][0]


def test_the_stop_flag_comes_back_without_any_record_and_stays() -> None:
    head = Head()
    with outbox_to(head) as outbox:
        assert not outbox.stop_wanted
        head.stop = True
        deadline = time.monotonic() + 5
        while not outbox.stop_wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert outbox.stop_wanted
        head.away = True
        time.sleep(0.05)
        assert outbox.stop_wanted


def test_log_lines_travel_with_level_and_text() -> None:
    head = Head()
    logger = logging.getLogger("test.outbox")
    logger.setLevel(logging.INFO)
    with outbox_to(head) as outbox:
        handler = OutboxLogHandler(outbox)
        logger.addHandler(handler)
        logger.warning("half of %d", 2)
        logger.removeHandler(handler)
        outbox.flush()
    assert [(r["kind"], r["level"], r["line"]) for r in head.arrived] == [("log", "WARNING", "half of 2")]
