"""How fast training is: every combination of sizes, strategies, precisions, row lengths, micro-batches and activation
checkpointing that is asked for, each in fresh processes, through training's own loop.

A figure holds for the device it was taken on; those of a CPU say nothing about GPUs.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gemfleet.train.errors import UserError

from ..shared import machine
from ..shared.models import REAL, model_folder
from ..shared.record import Record, Run
from ..shared.repeat import Case, Suite, Tick, add_repeat_arguments, measure_all, positive, report_console
from ..training.case import STRATEGIES, TrainingCase
from ..training.figures import figures
from ..training.ranks import measure_training
from .table import print_table, write_table

CHECKPOINTING = ("off", "selective", "full")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gemfleet bench throughput`."""
    add = parser.add_argument
    add("--models", default=f"tiny,{REAL}", help=f"sizes, with commas between (default: tiny,{REAL})")
    add("--strategies", default="ddp", help=f"of {', '.join(STRATEGIES)} (default: ddp)")
    add("--precisions", default="bf16", help="of bf16, fp32 (default: bf16)")
    add("--quantizations", default="none", help="of none, int8, int4 (default: none)")
    add("--lengths", default="512", help="tokens in a row (default: 512)")
    add("--micro", default="1,2", help="rows in a pass; a step has as many rows as the largest (default: 1,2)")
    add("--checkpointing", default="off,full", help=f"of {', '.join(CHECKPOINTING)} (default: off,full)")
    add("--ranks", default="1", help="processes that train together (default: 1)")
    add("--threads", type=positive, help="of a rank on a CPU (default: the cores divided by the ranks)")
    add("--document", type=positive, default=256, help="tokens of a document inside a row (default: 256)")
    add("--supervised", type=_share, default=0.5, help="share of tokens that the loss scores (default: 0.5)")
    add("--steps", type=positive, default=8, help="measured steps of a run (default: 8)")
    add("--warmup", type=positive, default=2, help="steps before them (default: 2)")
    add("--save-every", type=int, default=5, help="steps between checkpoints, 0: none (default: 5)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA where there is one")
    add("--model-folder", type=Path, help=f"weights of the {REAL} in place of the packaged ones")
    add("--profile", action="store_true", help="leave a Chrome trace and a table of operators beside each record")
    add_repeat_arguments(parser, "throughput", repeats=3)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write records and table; the last line printed is a summary as JSON."""
    if arguments.quick:
        make_quick(arguments)
    cases = chosen_cases(arguments)
    console = report_console()
    suite = Suite("throughput", arguments.warmup, partial(_measure, arguments), figures)
    records = measure_all(suite, cases, arguments.repeat, arguments.out, arguments.again, console)
    print_table(console, records)
    write_table(records, arguments.out / "throughput.md")
    print(json.dumps({"suite": "throughput", "records": str(arguments.out), "results": summary(records)}))
    return 1 if any(run.error for record in records for run in record.runs) else 0


def make_quick(arguments: argparse.Namespace) -> None:
    """One short run of the tiny model, with every combination that was asked for by name."""
    arguments.models, arguments.lengths, arguments.micro, arguments.checkpointing = "tiny", "128", "1", "off"
    arguments.precisions, arguments.repeat, arguments.steps, arguments.warmup = "fp32", 1, 3, 1
    arguments.save_every, arguments.document = 2, 64


def chosen_cases(arguments: argparse.Namespace) -> list[Case]:
    """Every combination. Raises UserError for a value that there is not."""
    device = resolved_device(arguments.device)
    models = _names("--models", arguments.models, None)
    lengths, micros = numbers("--lengths", arguments.lengths), numbers("--micro", arguments.micro)
    combinations = itertools.product(
        models,
        _names("--strategies", arguments.strategies, STRATEGIES),
        _names("--precisions", arguments.precisions, ("bf16", "fp32")),
        _names("--quantizations", arguments.quantizations, ("none", "int8", "int4")),
        lengths,
        micros,
        _names("--checkpointing", arguments.checkpointing, CHECKPOINTING),
        numbers("--ranks", arguments.ranks),
    )
    found = []
    for model, strategy, precision, quantization, length, micro, checkpointing, ranks in combinations:
        found.append(
            TrainingCase(
                model=model,
                strategy=strategy,
                precision=precision,
                quantization=quantization,
                length=length,
                micro=micro,
                rows=max(micros),
                checkpointing=checkpointing,
                ranks=ranks,
                document=arguments.document,
                supervised=arguments.supervised,
                threads=arguments.threads or max(1, machine.usable_cores() // ranks),
                device=device,
                warmup=arguments.warmup,
                steps=arguments.steps,
                save_every=arguments.save_every,
            )
        )
    return [Case(case.name, case.config(), case.total_steps) for case in found]


def resolved_device(wanted: str) -> str:
    """Raises UserError where CUDA is asked for and there is none."""
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise UserError("--device is cuda, but torch sees no CUDA device; use --device cpu")
    return "cpu"


def summary(records: Sequence[Record]) -> dict[str, dict[str, float | None]]:
    """What a script wants to know of each case."""
    return {
        record.case: {
            "tokens_per_second": round(record.results["tokens_per_second"]["median"], 2) if record.results else None,
            "mfu": round(record.results["mfu"], 4) if record.results else None,
        }
        for record in records
    }


def _measure(arguments: argparse.Namespace, case: Case, repeat: int, tick: Tick) -> Run:
    training = TrainingCase(**case.config)
    profile = arguments.out / f"profile-{case.name}" if arguments.profile and repeat == 0 else None
    return measure_training(training, model_folder(training.model, arguments.model_folder), repeat, tick, profile)


def _names(option: str, text: str, known: Sequence[str] | None) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    wrong = [name for name in names if known is not None and name not in known]
    if wrong or not names:
        raise UserError(f"{option} has {', '.join(wrong) or 'no name'}; choose from: {', '.join(known or ())}")
    return names


def numbers(option: str, text: str) -> list[int]:
    names = _names(option, text, None)
    if not all(name.isdigit() and int(name) > 0 for name in names):
        raise UserError(f"{option} is {text!r}; give whole numbers above 0 with commas between")
    return [int(name) for name in names]


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0 and at most 1")
    return value
