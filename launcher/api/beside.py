"""Starts the API beside a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..config import ApiConfig


@contextmanager
def status_api(home: Path, config: ApiConfig, run_id: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Starts the API, lets the phases inside go on meanwhile, and then tells where it is. A run goes on without one."""
    from .actor import api_facts, start_api

    actor = start_api(home, config) if config.enabled else None
    yield
    if actor is None:
        return
    try:
        tell(f"dashboard: {api_facts(home, config, actor).url}/#/runs/{run_id}")
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        tell(f"the dashboard did not start ({reason}); `gemfleet serve` shows the same")
