"""Plans the rows of a pass, for runs in which no probe measures them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .choice import fits
from .memory import memory_per_rank
from .options import DeviceKind, Sharing, Workload
from .shapes import ModelShape

# With so many tokens in a pass, its fixed cost hardly counts. On a CPU, a pass of the 270M costs as much as some 60
# tokens more (measured, see docs/batch-finder.md). On CUDA the cost is the launch of several hundred kernels: about
# 50 ms for the 1B, measured without a GPU that computes.
ENOUGH_TOKENS: dict[DeviceKind, int] = {"cpu": 1024, "cuda": 32768}


@dataclass(frozen=True)
class PlannedRows:
    """Rows of one pass; reason: why not more, as half a sentence"""

    rows: int
    reason: str


def rows_by_plan(
    shape: ModelShape,
    work: Workload,
    sharing: Sharing,
    ranks: int,
    memory_bytes: int,
    device: DeviceKind,
    most_rows: int,
) -> PlannedRows:
    """A power of two. It grows until a pass is long enough, holds all rows of a rank's step, or memory ends.

    most_rows: the most that a rank has in a step. The result is at least 1, also if that does not fit. `work.micro` has
    no effect.
    """
    rows = 1
    while rows * work.length < ENOUGH_TOKENS[device] * sharing.context and rows < most_rows:
        parts = memory_per_rank(shape, replace(work, micro=2 * rows), sharing, ranks, device)
        if not fits(parts, memory_bytes):
            return PlannedRows(rows, f"{2 * rows} rows would take {parts.total / 2**30:.1f} GiB")
        rows *= 2
    if rows >= most_rows:
        return PlannedRows(rows, "a pass holds all rows that a rank has in a step")
    return PlannedRows(rows, f"a pass of {rows * work.length:,} tokens is long enough that more would gain little")
