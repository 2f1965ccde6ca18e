"""How training scales over workers of this machine: weak (each worker keeps its rows) and strong (the rows are shared).

Efficiency is T_N / (N T_1), T_1 being the fastest single worker of all micro-batches tried, compared round by round.
On a CPU a worker has one thread; several GPUs of one machine are used where there are some. No network is measured.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from gemfleet.train.errors import UserError

from ..shared.models import REAL, model_folder
from ..shared.record import Run
from ..shared.repeat import Case, Suite, Tick, add_repeat_arguments, measure_all, positive, report_console
from ..throughput.suite import numbers, resolved_device
from ..throughput.table import print_table, write_table
from ..training.case import STRATEGIES, TrainingCase
from ..training.figures import figures
from ..training.ranks import measure_training
from .efficiency import MODES, efficiencies, print_efficiencies, write_efficiencies


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gemfleet bench scaling`."""
    add = parser.add_argument
    add("--model", default=REAL, help=f"size (default: {REAL})")
    add("--strategy", choices=STRATEGIES, default="ddp", help="default: ddp")
    add("--precision", choices=("bf16", "fp32"), default="bf16", help="default: bf16")
    add("--workers", default="1,2", help="numbers of workers, with commas between, 1 among them (default: 1,2)")
    add("--modes", default="weak,strong", help=f"of {', '.join(MODES)} (default: both)")
    add("--length", type=positive, default=256, help="tokens in a row (default: 256)")
    add("--rows", type=positive, default=2, help="rows of a worker in a step when weak (default: 2)")
    add("--micro", default="1,2", help="rows in a pass, each tried with every number of workers (default: 1,2)")
    add("--document", type=positive, default=256, help="tokens of a document inside a row (default: 256)")
    add("--threads", type=positive, default=1, help="of a worker on a CPU (default: 1)")
    add("--steps", type=positive, default=6, help="measured steps of a run (default: 6)")
    add("--warmup", type=positive, default=2, help="steps before them (default: 2)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA where there is one")
    add("--model-folder", type=Path, help=f"weights of the {REAL} in place of the packaged ones")
    add_repeat_arguments(parser, "scaling", repeats=3)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables, write records and tables; the last line printed is a summary as JSON."""
    if arguments.quick:
        arguments.model, arguments.precision, arguments.length, arguments.document = "tiny", "fp32", 128, 64
        arguments.micro, arguments.steps, arguments.warmup, arguments.repeat = "2", 3, 1, 1
    console = report_console()
    suite = Suite("scaling", arguments.warmup, partial(_measure, arguments), figures)
    cases = chosen_cases(arguments)
    records = measure_all(suite, cases, arguments.repeat, arguments.out, arguments.again, console)
    found = efficiencies(records)
    print_table(console, records)
    print_efficiencies(console, found)
    write_table(records, arguments.out / "scaling-cases.md")
    write_efficiencies(found, arguments.out / "scaling.md")
    results = {f"{point.mode}-{point.workers}": round(point.efficiency, 4) for point in found}
    print(json.dumps({"suite": "scaling", "records": str(arguments.out), "efficiency": results}))
    return 1 if any(run.error for record in records for run in record.runs) else 0


def chosen_cases(arguments: argparse.Namespace) -> list[Case]:
    """Each case once, though weak and strong share some. Raises UserError where rows cannot be shared evenly."""
    workers, modes = numbers("--workers", arguments.workers), arguments.modes.split(",")
    if 1 not in workers:
        raise UserError(f"--workers is {arguments.workers}, but scaling is told against one worker; begin with 1,")
    if unknown := set(modes) - set(MODES):
        raise UserError(f"--modes has {', '.join(sorted(unknown))}; choose from: {', '.join(MODES)}")
    total = arguments.rows * max(workers)
    if "strong" in modes and any(total % count for count in workers):
        raise UserError(f"{total} rows cannot be shared evenly by --workers {arguments.workers}; give another --rows")
    rows = {(count, arguments.rows) for count in workers if "weak" in modes}
    rows |= {(count, total // count) for count in workers if "strong" in modes}
    cases = [_case(arguments, *each, micro) for each in sorted(rows) for micro in numbers("--micro", arguments.micro)]
    return [Case(case.name, case.config(), case.total_steps) for case in cases if case.micro <= case.rows]


def _case(arguments: argparse.Namespace, workers: int, rows: int, micro: int) -> TrainingCase:
    return TrainingCase(
        model=arguments.model,
        strategy=arguments.strategy,
        precision=arguments.precision,
        length=arguments.length,
        document=arguments.document,
        rows=rows,
        micro=micro,
        ranks=workers,
        threads=arguments.threads,
        device=resolved_device(arguments.device),
        warmup=arguments.warmup,
        steps=arguments.steps,
        save_every=0,
    )


def _measure(arguments: argparse.Namespace, case: Case, repeat: int, tick: Tick) -> Run:
    training = TrainingCase(**case.config)
    return measure_training(training, model_folder(training.model, arguments.model_folder), repeat, tick)
