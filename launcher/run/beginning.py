"""How a run begins. Imports nothing heavy, so that a command can choose it quickly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class New:
    """A run without a row in the registry. run_id: its id; None: one is made from its name; tags: its tags, by key"""

    run_id: str | None = None
    tags: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Resumed:
    """A run that has ended and continues from its newest verified checkpoint.

    accept_changes: also where other data, another base or other adapters made that checkpoint
    """

    run_id: str
    accept_changes: bool = False


@dataclass(frozen=True)
class Submitted:
    """A run whose row the API has made, or opened again. accept_changes: see `Resumed`"""

    run_id: str
    accept_changes: bool = False


Beginning = New | Resumed | Submitted
