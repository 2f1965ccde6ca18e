"""How many rows the plan gives a pass."""

from __future__ import annotations

import pytest
from gemfleet.train.planning import SIZES, Sharing, Workload, memory_per_rank
from gemfleet.train.planning.options import DeviceKind
from gemfleet.train.planning.rows import rows_by_plan

ROOM = 10**13
DDP = Sharing("ddp")


@pytest.mark.parametrize(
    ("device", "length", "most", "rows", "why"),
    [
        ("cpu", 2048, 64, 1, "2,048 tokens is long enough"),
        ("cpu", 1024, 64, 1, "1,024 tokens is long enough"),
        ("cpu", 256, 64, 4, "1,024 tokens is long enough"),
        ("cpu", 64, 64, 16, "1,024 tokens is long enough"),
        ("cpu", 256, 3, 4, "holds all rows"),
        ("cpu", 256, 1, 1, "holds all rows"),
        ("cuda", 2048, 64, 16, "32,768 tokens is long enough"),
        ("cuda", 2048, 6, 8, "holds all rows"),
    ],
)
def test_a_pass_is_long_enough_or_holds_all(device: DeviceKind, length: int, most: int, rows: int, why: str) -> None:
    found = rows_by_plan(SIZES["1b"], Workload(length=length), DDP, 2, ROOM, device, most)
    assert found.rows == rows
    assert why in found.reason


def test_memory_ends_it_and_one_row_is_the_least() -> None:
    work = Workload(length=1024)
    four = memory_per_rank(SIZES["1b"], Workload(length=1024, micro=4), DDP, 2).total
    found = rows_by_plan(SIZES["1b"], work, DDP, 2, int(four / 0.89), "cuda", 64)
    assert found.rows == 4
    assert "8 rows would take" in found.reason
    assert rows_by_plan(SIZES["1b"], work, DDP, 2, 1, "cuda", 64).rows == 1
