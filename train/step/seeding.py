"""Derives the random numbers of a step."""

from __future__ import annotations

import torch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds torch from (seed, step, rank), so a resumed run draws the same dropout as an uninterrupted one."""
    mixed = (seed * 1_000_003 + step) * 1_000_003 + rank
    torch.manual_seed(mixed % (2**63))
