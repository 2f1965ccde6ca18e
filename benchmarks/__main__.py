"""`gemfleet bench SUITE [options]`, also `python -m benchmarks SUITE`: run one suite of measurements."""

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
    "gpu-proof": "on a real GPU: whether the CUDA path computes what it should, and how fast, in 8 minutes",
    "throughput": "tokens per second, MFU and memory of training, by size, strategy, precision, length and batch",
    "scaling": "weak and strong scaling over workers of this machine, and bytes on the wire",
    "launch": "from `gemfleet train` and `gemfleet resume` to the first step, and where that time goes",
    "faults": "what a fault in the middle of a run costs: steps, seconds, share of the time that went into training",
    "peers": "one LoRA training step of gemfleet beside TRL, transformers and plain PyTorch",
    "report": "records as one HTML page, Markdown and pictures",
    "compare": "two sets of records: what regressed, what improved, what is noise",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite asked for; returns the exit code: 0 done, 1 a measurement failed, 2 it cannot start."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="gemfleet bench", description=__doc__)
    commands = parser.add_subparsers(dest="suite", metavar="SUITE", required=True)
    for name, summary in SUITES.items():
        command = commands.add_parser(name, help=summary)
        if name in given[:1]:  # a suite imports what it measures; only the one asked for does
            suite = importlib.import_module(f"{__package__}.{name.replace('-', '_')}.suite")
            command.description = suite.__doc__
            suite.add_arguments(command)
            command.set_defaults(run=suite.run)
    arguments = parser.parse_args(given)
    try:
        return int(arguments.run(arguments))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    # As Ctrl-C does, being terminated ends the running contender too and removes temporary files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)
