"""Prove on this machine's GPU that the CUDA path computes what it should, then measure how fast: parts of a minute,
without network and without Ray. Each part leaves a record as it ends; docs/gpu-proof.md says how to read them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gemfleet.train.errors import UserError
from rich.console import Console

from ..shared import machine
from ..shared.children import child_environment
from ..shared.record import now
from ..shared.repeat import OUT, report_console
from ..throughput.suite import resolved_device
from .registry import PARTS
from .results import SUITE, Book, Result, table
from .runner import prove_all

MINUTES = 8.0
OTHER_PATIENCE = 10.0  # the seconds of parts are those of a GPU that computes
RESULTS = Path("benchmarks/results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gemfleet bench gpu-proof`."""
    add = parser.add_argument
    add("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}, with commas between (default: all)")
    add("--minutes", type=float, default=MINUTES, help=f"after which no part goes on (default: {MINUTES:g})")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA where there is one")
    add("--quick", action="store_true", help="tiny shapes: a check of the proof itself, no claim")
    add(
        "--no-numbers",
        dest="numbers",
        action="store_false",
        help="judge no computed number, for a device whose kernels compute nothing: all else is still checked",
    )
    add("--out", type=Path, help=f"folder of records (default: {RESULTS / SUITE}-<GPU>-<date>; on a CPU {OUT / SUITE})")
    add("--archive", type=Path, help="keep all records in this one .tar.gz too, from the first part on")


def run(arguments: argparse.Namespace) -> int:
    """Prove, print the table, write records and summary; the last line printed is JSON. 1 unless all parts pass."""
    names, device, console = chosen_parts(arguments.parts), resolved_device(arguments.device), report_console()
    out = arguments.out or default_out(device)
    config = {"device": device, "quick": arguments.quick, "numbers": arguments.numbers, "minutes": arguments.minutes}
    book = Book(out, config, arguments.archive)
    patience = 1.0 if device == "cuda" and arguments.numbers else OTHER_PATIENCE
    deadline = time.monotonic() + arguments.minutes * 60
    with tempfile.TemporaryDirectory(prefix="gpu-proof-") as work:
        start = partial(_start, arguments, device, out / f"{SUITE}.log", Path(work))
        results = prove_all(names, start, deadline, partial(_keep, book, console), patience)
    book.summarise(results)
    console.print(table(results))
    verdicts = {result.part: result.verdict for result in results}
    print(json.dumps({"suite": SUITE, "records": str(out), "results": verdicts}))
    return 0 if all(result.good for result in results) else 1


def chosen_parts(names: str) -> list[str]:
    """The parts asked for, in the proof's order. Raises UserError for one that there is not."""
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in PARTS]
    if unknown or not chosen:
        raise UserError(f"--parts has {', '.join(unknown) or 'no name'}; choose from: {', '.join(PARTS)}")
    return [name for name in PARTS if name in chosen]


def default_out(device: str) -> Path:
    gpus = machine.hardware().get("gpus")
    if device == "cpu" or not gpus:
        return OUT / SUITE
    name = re.sub(r"[^a-z0-9]+", "-", gpus[0].lower()).strip("-")
    return RESULTS / f"{SUITE}-{name}-{now()[:10].replace('-', '')}"


def _start(
    arguments: argparse.Namespace, device: str, log: Path, work: Path, parts: Sequence[str]
) -> subprocess.Popen[str]:
    """All cores for the child, one for tiny shapes; messages go to the log. A rank alone needs no network but `lo`."""
    options = [*(["--quick"] if arguments.quick else []), *([] if arguments.numbers else ["--no-numbers"])]
    folder = Path(tempfile.mkdtemp(dir=work))
    command = [sys.executable, "-m", f"{__package__}.child", *parts, "--device", device, "--folder", str(folder)]
    command += options
    threads = 1 if arguments.quick else machine.usable_cores()
    environment = child_environment(threads, hide_gpus=device == "cpu") | {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as messages:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, env=environment, text=True)


def _keep(book: Book, console: Console, result: Result) -> None:
    book.keep(result)
    if result.state != "running":
        part, verdict, count, worst, seconds = result.row()
        console.print(f"{part}: {verdict} ({count} checks, {seconds} s) {worst}", highlight=False)
