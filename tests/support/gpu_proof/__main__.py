"""Prove on this machine's GPU that the CUDA path computes what it should, and tell how fast: parts of a minute, without
network and without Ray. One record holds what each part found; docs/gpu-proof.md says how to read it.

  make gpu-proof ARGS='--parts step,resume'
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gemfleet.benchmarks.shared import machine
from gemfleet.benchmarks.shared.record import now
from gemfleet.benchmarks.shared.suite import OUT, names, report_console
from gemfleet.benchmarks.training.case import resolved_device
from gemfleet.train.errors import UserError
from rich.console import Console
from support.gpu_proof.parts import PARTS
from support.gpu_proof.results import SUITE, Book, Result, table
from support.gpu_proof.runner import prove_all
from support.gpu_proof.settings import Settings
from support.places import REPOSITORY, RESULTS, TESTS

MINUTES = 8.0
OTHER_PATIENCE = 10.0  # the seconds of parts are those of a GPU that computes


def main(argv: Sequence[str] | None = None) -> int:
    """Prove, print the table, write record and summary; the last line printed is JSON. 1 unless all parts pass."""
    options = _options(argv)
    settings = Settings(resolved_device(options.device), options.quick, options.numbers)
    chosen = names("--parts", options.parts, tuple(PARTS))
    parts = [name for name in PARTS if name in chosen]
    out, console = options.out or _default_out(settings.device), report_console()
    config = {**vars(settings), "minutes": options.minutes, "parts": parts}
    arguments = " ".join(sys.argv[1:] if argv is None else argv)
    book = Book(out, config, f"make gpu-proof ARGS='{re.sub(r'(?:^|(?<= ))/[^ ]*/', '', arguments)}'")
    patience = 1.0 if settings.device == "cuda" and settings.numbers else OTHER_PATIENCE
    deadline = time.monotonic() + options.minutes * 60
    with tempfile.TemporaryDirectory(prefix="gpu-proof-") as work:
        start = partial(_start, settings, out / f"{SUITE}.log", Path(work))
        results = prove_all(parts, start, deadline, partial(_keep, book, console), patience)
    console.print(table(results))
    (out / f"{SUITE}.md").write_text(book.markdown(results), encoding="utf-8")
    verdicts = {result.part: result.verdict for result in results}
    print(json.dumps({"suite": SUITE, "records": str(out), "results": verdicts}))
    return 0 if all(result.good for result in results) else 1


def _default_out(device: str) -> Path:
    gpus = machine.hardware().get("gpus")
    if device == "cpu" or not gpus:
        return OUT / SUITE
    name = re.sub(r"[^a-z0-9]+", "-", gpus[0].lower()).strip("-")
    return RESULTS / f"{SUITE}-{name}-{now()[:10].replace('-', '')}"


def _start(settings: Settings, log: Path, work: Path, parts: Sequence[str]) -> subprocess.Popen[str]:
    """pytest on these parts, with all cores, one for tiny shapes; messages go to the log. The hub is out of reach."""
    threads = 1 if settings.quick else machine.usable_cores()
    environment = os.environ | settings.variable() | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""} if settings.device == "cpu" else {}
    options = [
        "--basetemp",
        tempfile.mkdtemp(dir=work),
        "-q",
        "-s",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:timeout",
        "-W",
        "ignore::pytest.PytestConfigWarning",
    ]
    tests = [str(TESTS / "gpu" / PARTS[part].test) for part in parts]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as messages:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "pytest", *options, *tests],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
        )


def _keep(book: Book, console: Console, result: Result) -> None:
    book.keep(result)
    if result.state != "running":
        part, verdict, count, worst, seconds = result.row()
        console.print(f"{part}: {verdict} ({count} checks, {seconds} s) {worst}", highlight=False)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="gpu-proof", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}, with commas between (default: all)")
    add("--minutes", type=float, default=MINUTES, help=f"after which no part goes on (default: {MINUTES:g})")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA where there is one")
    add("--quick", action="store_true", help="tiny shapes: a check of the proof itself, no claim")
    judged = "judge no computed number, for a device whose kernels compute nothing: all else is still checked"
    add("--no-numbers", dest="numbers", action="store_false", help=judged)
    add("--out", type=Path, help=f"folder of the record (default: in benchmarks/results; on a CPU {OUT / SUITE})")
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"Error: {error}")
