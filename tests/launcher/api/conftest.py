"""A live API over a real registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers.api_live import Live, serve


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    yield from serve(tmp_path)
