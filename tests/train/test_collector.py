"""Long work without Python's garbage collector: it goes on where it was on, whatever happens."""

from __future__ import annotations

import gc

import pytest
from gemfleet.train.collector import uncollected


def work() -> None:
    assert not gc.isenabled()
    with uncollected():
        pass
    assert not gc.isenabled()
    raise OSError("gone")


def test_the_collector_is_off_within_and_as_it_was_after() -> None:
    with pytest.raises(OSError, match="gone"), uncollected():
        work()
    assert gc.isenabled()


def test_what_is_kept_is_left_out_of_later_collections() -> None:
    gc.unfreeze()
    with uncollected(kept=True):
        made = [{"number": number} for number in range(2000)]
    assert gc.get_freeze_count() >= len(made)
    assert gc.isenabled()
    gc.unfreeze()
