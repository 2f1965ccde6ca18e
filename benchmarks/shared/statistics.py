"""Quantiles of a handful of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of `values` lie, interpolated between neighbours; nan of nothing."""
    return float(np.quantile(values, share)) if len(values) else math.nan


def median(values: Sequence[float]) -> float:
    return quantile(values, 0.5)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with the 10th and 90th percentile."""
    return {name: quantile(values, share) for name, share in (("median", 0.5), ("p10", 0.1), ("p90", 0.9))}
