"""Every test here runs on pretended GPUs, in processes of their own that serve one case after the other."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.nullgpu.build import built, why_not
from support.nullgpu.cases import save_small_gemma3
from support.nullgpu.pools import Pools
from support.nullgpu.table import CASE, COUNT, ROWS, print_tables, taken_counts


@pytest.fixture(scope="session", autouse=True)
def stand_in() -> Path:
    """The folder of the stand-in; skips where it cannot be built."""
    if reason := why_not():
        pytest.skip(reason)
    return built()


@pytest.fixture(scope="session")
def pools(stand_in: Path) -> Iterator[Pools]:
    with ExitStack() as stack:
        yield Pools(stack)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_small_gemma3(tmp_path_factory.mktemp("small") / "model"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any]:
    """What the case counted goes with its report, which reaches the process that prints also from another one."""
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" and item.get_closest_marker("nullgpu"):
        name = f"{item.path.stem.removeprefix('test_')}: {item.name}"
        report.user_properties.append((CASE, (name, report.outcome, f"{report.duration:.1f}")))
        report.user_properties.extend((COUNT, row) for row in taken_counts())


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Each case becomes a row of the table, and so does what it counted."""
    for name, row in report.user_properties:
        if name in ROWS:
            ROWS[name].append(tuple(row))  # type: ignore[arg-type]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if any(ROWS.values()):
        terminalreporter.section("on pretended GPUs")
        print_tables(terminalreporter.write_line)
