"""Known lines of other libraries are hidden, and nothing else is."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from gemfleet.launcher.commands.launch_here import RAY_LINE
from gemfleet.train.quiet import KNOWN_LINES, hide_known_lines

LINES = (*KNOWN_LINES, RAY_LINE)
IMPORT = "import logging; logging.basicConfig(); {hide}; import bitsandbytes.functional"
HIDE = "from gemfleet.train.device.abilities import prepare_process; prepare_process(1)"


@pytest.fixture(autouse=True)
def filters() -> Iterator[None]:
    before = {name: list(logging.getLogger(name).filters) for name, _ in LINES}
    yield
    for name, filters in before.items():
        logging.getLogger(name).filters[:] = filters


@pytest.mark.parametrize(("name", "beginning"), LINES)
def test_only_the_known_line_is_hidden(name: str, beginning: str) -> None:
    hide_known_lines(LINES)
    count = len(logging.getLogger(name).filters)
    hide_known_lines(LINES)
    assert len(logging.getLogger(name).filters) == count
    hidden = logging.LogRecord(name, logging.WARNING, "", 1, "%s for this machine", (beginning,), None)
    shown = logging.LogRecord(name, logging.WARNING, "", 1, "something else than %s", (beginning,), None)
    assert not logging.getLogger(name).filter(hidden)
    assert logging.getLogger(name).filter(shown)


@pytest.mark.slow
def test_bitsandbytes_says_the_line_only_where_it_is_not_hidden() -> None:
    plain, quiet = (_stderr_of(IMPORT.format(hide=hide)) for hide in ("pass", HIDE))
    if "gemm_4bit_forward" not in plain:
        pytest.skip("bitsandbytes has no such line on this CPU")
    assert "gemm_4bit_forward" not in quiet


def _stderr_of(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
