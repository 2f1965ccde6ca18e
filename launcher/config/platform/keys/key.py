"""One row of the table: a key of the request and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .values import Reader

P = "train_model_parameters."  # the prefix of most keys
How = Literal["alone", "together", "checked", "unused"]


@dataclass(frozen=True)
class Key:
    """A key by its dotted name in the request.

    meant:   what the platform means by it
    target:  the field of the run's configuration that it decides; "" where it decides none
    reads:   how its value is read
    effect:  what it does here, for docs/platform.md
    default: its value where the request has none; None: the target's own default
    how:     `alone`: the value goes to the target; `together`: other keys decide the target, too; `checked`: the value
             must agree with what gemfleet does; `unused`: it is accepted, and a note names it
    """

    name: str
    meant: str
    target: str
    reads: Reader
    effect: str
    how: How = "alone"
    default: Any = None
    required: bool = False
