"""`gemfleet bench`"""

from __future__ import annotations

import os
import sys

import typer

# The suite itself reads everything after its name, also --help.
PASSES_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def bench(context: typer.Context) -> None:
    """Measure on this machine: `gemfleet bench` lists the suites, `gemfleet bench SUITE --help` one suite's options.

    Examples:

      gemfleet bench throughput --quick

      gemfleet bench peers --repeat 3

    Exit codes: 0 measured, 1 a measurement failed or a build regressed, 2 something to put right first.
    """
    # `launcher` must not import `benchmarks`, which imports it. So this process becomes another one.
    arguments = context.args or ["--help"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "gemfleet.benchmarks", *arguments])
