"""How far computed tensors are apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# What bf16 may add to the error that another bf16 computation of the same has: they round at different places.
PEER_SHARE = 2.0
PEER_FLOOR = 1e-3


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
