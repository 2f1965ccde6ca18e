"""Tries a delivery again after a pause."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from .errors import DeliveryError

WAITS_BETWEEN_ATTEMPTS = (2.0, 8.0)
Result = TypeVar("Result")


def try_again(
    deliver: Callable[[], Result],
    passing: tuple[type[Exception], ...],
    what: str,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """What `deliver` returns, within three attempts. After errors of the `passing` kinds it is called anew.

    Raises DeliveryError with the last reason; `what` begins its sentence.
    """
    error: Exception | None = None
    for wait in (*WAITS_BETWEEN_ATTEMPTS, None):
        try:
            return deliver()
        except passing as failure:
            error = failure
        if wait is not None:
            sleep(wait)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise DeliveryError(f"{what} failed {len(WAITS_BETWEEN_ATTEMPTS) + 1} times ({reason})")
