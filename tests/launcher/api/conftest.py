"""A live API over a real registry, and a browser for its pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.servers.api_live import Live, serve
from support.servers.browser import complaints, emulate, open_browser


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    yield from serve(tmp_path)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def window(downloads: Path) -> Iterator[Any]:
    yield from open_browser(downloads)


@pytest.fixture
def browser(window: Any) -> Any:
    """The window, as new."""
    window.get("about:blank")
    emulate(window)
    complaints(window)
    return window
