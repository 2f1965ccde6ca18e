"""Measure on this machine, or read what was measured; `gemfleet bench SUITE --help` explains one suite."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from gemfleet.train.errors import UserError

from .suites import SUITES, TOOLS, load


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite asked for; returns the exit code: 0 done, 1 a measurement failed, 2 it cannot start."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="gemfleet bench", description=__doc__)
    commands = parser.add_subparsers(dest="suite", metavar="SUITE", required=True)
    for name, summary in (SUITES | TOOLS).items():
        command = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name in given[:1]:
            suite = load(name)
            command.description = sys.modules[type(suite).__module__].__doc__
            suite.add_arguments(command)
            command.set_defaults(run=suite.run)
    options = parser.parse_args(given)
    try:
        return int(options.run(options))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    # As Ctrl-C does, being terminated ends what is running and removes temporary files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)
