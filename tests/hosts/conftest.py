"""Tests on several hosts are skipped, with the reason, where this machine cannot have them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.fault_table import ROWS, print_table
from support.hosts.hosts import fleet_of, why_not
from support.hosts.ray_cluster import RayCluster, prepare_head, start_ray


@pytest.fixture(scope="session", autouse=True)
def _machine_can_have_hosts() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    """A head without a CPU for Ray and two workers; for tests that leave it as it was."""
    with fleet_of(["head", "left", "right"]) as fleet:
        running = start_ray(fleet, cpus={"head": 0, "left": 1, "right": 1})
        prepare_head(running.head)
        yield running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.section("what each fault on a network cost")
        print_table(terminalreporter.write_line)
