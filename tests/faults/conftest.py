"""What the fault tests share: one cluster, one undisturbed run to compare with, and the table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gemfleet.cluster.registry.run_registry import RunRegistry
from support.fault_table import EPOCHS, ROWS, Place, print_table
from support.tiny_run import ends, local_ray, make_workplace, start


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    workplace, home = make_workplace(tmp_path_factory.mktemp("work")), tmp_path_factory.mktemp("whole")
    with local_ray() as address:
        ends(start(workplace, home, address, EPOCHS))
        (run,) = RunRegistry(home / "gemfleet.db").list_runs()
        yield Place(workplace, address, home / "runs" / run.id / "output")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        terminalreporter.section("what each fault cost")
        print_table(terminalreporter.write_line)
