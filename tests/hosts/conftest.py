"""Tests on several hosts are skipped, with the reason, where this machine cannot have them."""

from __future__ import annotations

import pytest

from tests.hosts.hosts import why_not


@pytest.fixture(scope="session", autouse=True)
def _machine_can_have_hosts() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
