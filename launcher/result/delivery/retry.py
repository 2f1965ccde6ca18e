"""Repeats a delivery that failed, after a pause."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from gemfleet.train.errors import first_line

from .errors import DeliveryError

WAITS_BETWEEN_TRIES = (2.0, 8.0)
Result = TypeVar("Result")


def try_again(
    deliver: Callable[[], Result],
    passing: tuple[type[Exception], ...],
    what: str,
    sleep: Callable[[float], None] = time.sleep,
    reason: Callable[[Exception], str] = first_line,
) -> Result:
    """Call `deliver` up to three times, until it raises none of the `passing` errors; returns what it returns.

    Raises DeliveryError with the last reason; `what` begins its sentence, `reason` ends it.
    """
    error: Exception | None = None
    for wait in (*WAITS_BETWEEN_TRIES, None):
        try:
            return deliver()
        except passing as failure:
            error = failure
        if wait is not None:
            sleep(wait)
    assert error is not None
    raise DeliveryError(f"{what} failed {len(WAITS_BETWEEN_TRIES) + 1} times ({reason(error)})")
