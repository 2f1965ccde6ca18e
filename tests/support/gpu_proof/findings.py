"""What a part finds out: named checks, each a figure beside its bound, and figures that are only told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor

Verdict = Literal["passed", "failed", "skipped", "not compared"]
# What bf16 may add to the error that another bf16 computation of the same has: they round at different places.
PEER_SHARE = 2.0
PEER_FLOOR = 1e-3


@dataclass(frozen=True)
class Check:
    """figure, bound: the check passes where the figure is at most the bound; None where it is a plain fact.

    `not compared`: the figure comes from computed numbers, and those are not to be judged.
    """

    name: str
    verdict: Verdict
    figure: float | None = None
    bound: float | None = None
    detail: str = ""

    @property
    def strain(self) -> float:
        """How much of its bound the figure takes: above 1 it fails."""
        if self.figure is None or self.bound is None:
            return math.inf if self.verdict == "failed" else 0.0
        return self.figure / self.bound if self.bound else math.inf if self.figure else 0.0

    @property
    def rank(self) -> tuple[bool, float, bool]:
        """Sorts what is worth telling last: failed, near to its bound, any figure."""
        return self.verdict == "failed", self.strain, self.bound is not None

    def __str__(self) -> str:
        if self.verdict in ("skipped", "failed") and self.detail:
            return f"{self.name}: {self.detail}"
        if self.figure is None or self.bound is None:
            return self.name
        return f"{self.name}: {self.figure:.3g} of {self.bound:.3g}"


@dataclass
class Findings:
    """numbers: whether figures made of computed numbers are judged; tell: hears of each check as it is made."""

    numbers: bool = True
    tell: Callable[[Mapping[str, Any]], None] = lambda event: None
    checks: list[Check] = field(default_factory=list)

    def at_most(self, name: str, figure: float, bound: float, computed: bool = True) -> None:
        """A figure and what it may be. computed: it is made of numbers that kernels computed."""
        if computed and not self.numbers:
            self._add(Check(name, "not compared", _finite(figure), bound))
        else:
            self._add(Check(name, "passed" if figure <= bound else "failed", _finite(figure), bound))

    def holds(self, name: str, fact: bool, detail: str = "") -> None:
        """A fact that needs no computed number; detail: what is the case where it does not hold."""
        self._add(Check(name, "passed" if fact else "failed", detail="" if fact else detail))

    def skip(self, name: str, why: str) -> None:
        """Something that cannot be tried here."""
        self._add(Check(name, "skipped", detail=why))

    def note(self, **figures: Any) -> None:
        """Figures that are told and not judged."""
        self.tell({"event": "figures", "figures": figures})

    def _add(self, check: Check) -> None:
        self.checks.append(check)
        self.tell({"event": "check", "check": asdict(check)})


def _finite(figure: float) -> float | None:
    return float(figure) if math.isfinite(figure) else None


def apart(ours: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """The largest over all tensors of |ours - exact| / |exact|, in fp64 on the CPU."""
    assert ours.keys() == exact.keys()
    return max(_apart(ours[name], exact[name]) for name in exact)


def bf16_bound(peer: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """What bf16 may be apart from `exact`, an fp32 computation, where another bf16 computation came to `peer`."""
    return PEER_SHARE * apart(peer, exact) + PEER_FLOOR


def ratio(ours: float, exact: float) -> float:
    """|ours - exact| / |exact|."""
    return abs(ours - exact) / abs(exact) if exact else abs(ours)


def _apart(ours: Tensor, exact: Tensor) -> float:
    ours, exact = ours.detach().double().cpu(), exact.detach().double().cpu()
    size = float(exact.norm())
    return float((ours - exact).norm()) / size if size else float(ours.norm())
