"""`gemfleet bench` hands everything on to the suites, in one process and with their exit code."""

from __future__ import annotations

import subprocess
import sys


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gemfleet.launcher.cli", "bench", *arguments], capture_output=True, text=True
    )


def test_without_a_suite_it_lists_them() -> None:
    done = bench()
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("peers", "plan", "batch-finder", "checkpoint", "api"))


def test_options_and_the_exit_code_are_the_suites_own() -> None:
    assert "--cases" in bench("plan", "--help").stdout
    done = bench("plan", "--cases", "nothing")
    assert done.returncode == 2
    assert "nothing" in done.stderr
