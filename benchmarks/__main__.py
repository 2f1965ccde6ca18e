"""`python -m benchmarks SUITE [options]`, also as `python -m gemfleet.benchmarks`: run one suite of measurements."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence

from gemfleet.train.errors import UserError

SUITES = {
    "api": "how long the status API takes to answer under load",
    "plan": "the memory that the plan foretells against the memory that training takes",
    "checkpoint": "what saving costs a step, and throughput into the head beside a plain socket copy",
    "batch-finder": "finding the micro-batch: time, trials, and what was chosen beside every size and accelerate",
    "peers": "one LoRA training step of gemfleet beside TRL, transformers and plain PyTorch",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite asked for; returns the exit code: 0 done, 1 a measurement failed, 2 it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="suite", metavar="SUITE", required=True)
    for name, summary in SUITES.items():
        suite = importlib.import_module(f"{__package__}.{name.replace('-', '_')}.suite")
        command = commands.add_parser(name, help=summary, description=suite.__doc__)
        suite.add_arguments(command)
        command.set_defaults(run=suite.run)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    # As Ctrl-C does, being terminated ends the running contender too and removes temporary files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
