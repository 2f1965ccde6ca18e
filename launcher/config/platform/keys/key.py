"""One row of the table: a key of the request and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .values import Reader

P = "train_model_parameters."  # begins the names of most keys
How = Literal["alone", "together", "checked", "unused"]


@dataclass(frozen=True)
class Key:
    """A key by its dotted name in the request.

    meant:   what the platform means by it
    target:  the field of the run's configuration it decides; "" where it decides none
    default: what stands where it is missing or means nothing; None: the target's own default
    how:     `alone` goes to the target as read; `together` is combined with other keys; `checked` only has to agree
             with what gemfleet does; `unused` is accepted and named
    """

    name: str
    meant: str
    target: str
    reads: Reader
    effect: str
    how: How = "alone"
    default: Any = None
    required: bool = False
