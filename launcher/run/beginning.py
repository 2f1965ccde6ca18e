"""How a run begins. Imports nothing, so that a command can say it before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class New:
    """A run that nobody knows yet. run_id: the id it shall have; None: one is made from its name."""

    run_id: str | None = None


@dataclass(frozen=True)
class Resumed:
    """A run that has ended and goes on from its newest verified checkpoint.

    accept_changes: also where that checkpoint was made from other data, another base or other adapters
    """

    run_id: str
    accept_changes: bool = False


@dataclass(frozen=True)
class Submitted:
    """A run whose row the API made, or opened again. accept_changes: as of `Resumed`"""

    run_id: str
    accept_changes: bool = False


Beginning = New | Resumed | Submitted
