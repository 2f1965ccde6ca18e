"""Time one LoRA training step of several trainers on the same examples, on this machine's CPU; compare their losses.

Contenders take turns, each in a fresh process with all cores: gemfleet, TRL in three modes, transformers' Trainer and a
plain PyTorch loop. The figures hold for the CPU they were taken on and say nothing about GPUs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gemfleet.train.errors import UserError

from ..shared import machine
from ..shared.record import Record, Run, write_case
from ..shared.repeat import Case, Suite, Tick, add_repeat_arguments, measure_all, positive, report_console, start_run
from .adapter import write_initial_adapter
from .contenders import CONTENDERS
from .data import (
    PROMPT,
    SHORTEST_ANSWER,
    Batch,
    batch_supervised_tokens,
    batch_tokens,
    choose_batches,
    examples_from_rows,
    token_statistics,
)
from .report import print_table, results_of, summary_line
from .runner import run_one
from .stats import REFERENCE, Outcome, Summary, summarise
from .task import Recipe, Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m benchmarks peers`."""
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="names with commas between (default: all)")
    parser.add_argument("--steps", type=positive, default=6, help="measured steps of a repeat (default: 6)")
    parser.add_argument("--warmup", type=positive, default=2, help="unmeasured steps before them (default: 2)")
    parser.add_argument("--batch", type=positive, default=4, help="examples in a step (default: 4)")
    parser.add_argument("--threads", type=positive, default=machine.usable_cores(), help="default: one per core")
    parser.add_argument(
        "--seed", type=int, default=42, help="chooses the examples and the initial adapter (default: 42)"
    )
    parser.add_argument(
        "--shortest-answer",
        type=positive,
        default=SHORTEST_ANSWER,
        help=f"leave out examples with fewer supervised tokens (default: {SHORTEST_ANSWER}, for Alpaca-like lengths)",
    )
    parser.add_argument("--model", type=Path, help="folder of a Gemma 3 (default: the packaged 270M)")
    add_repeat_arguments(parser, "peers", repeats=3)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write a record for each contender; the last line printed is a summary as JSON."""
    if arguments.quick:
        arguments.warmup, arguments.steps, arguments.repeat = 1, 2, 1
    console = report_console()
    contenders = chosen_contenders(arguments.contenders)
    model_folder = arguments.model.resolve() if arguments.model else _demo_model()
    batches = load_batches(model_folder, arguments)
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        recipe = Recipe(seed=arguments.seed)
        task = Task(model_folder, Path(folder) / "initial.safetensors", tuple(batches), recipe, arguments.threads)
        write_initial_adapter(model_folder, recipe, task.adapter_file)
        suite = peers_suite(task, arguments.warmup, Path(folder) / "task.json")
        config = describe(arguments, model_folder, batches)
        cases = [contender_case(name, config, len(batches)) for name in contenders]
        records = measure_all(suite, cases, arguments.repeat, arguments.out, arguments.again, console)
    summaries = summarise_all(records, batches, arguments.warmup)
    records = with_results(records, summaries)
    for record in records:
        write_case(record, arguments.out)
    print_table(console, summaries, token_statistics(batches))
    print(summary_line(records, arguments.out))
    return 1 if any(summary.errors for summary in summaries) else 0


def peers_suite(task: Task, warmup: int, task_file: Path) -> Suite:
    """Each contender in a fresh process, told what to do by a file."""
    task.save(task_file)
    tokens = [batch_tokens(batch) for batch in task.batches]

    def measure(case: Case, repeat: int, tick: Tick) -> Run:
        run = start_run(repeat)
        outcome = run_one(
            case.name, repeat, task_file, len(task.batches), task.threads, lambda done: tick(f"step {done}")
        )
        return run.model_copy(
            update={
                "step_seconds": list(outcome.step_seconds),
                "tokens": tokens[: len(outcome.step_seconds)],
                "losses": list(outcome.losses),
                "facts": {"peak_rss_bytes": outcome.peak_rss_bytes},
                "error": outcome.error,
            }
        )

    # A contender's figures need the reference's losses: `with_results` makes them from all records.
    return Suite("peers", warmup, measure, lambda record: record.results)


def contender_case(name: str, config: dict[str, Any], steps: int) -> Case:
    return Case(name, {**config, "contender": CONTENDERS[name].summary}, steps)


def with_results(records: Sequence[Record], summaries: Sequence[Summary]) -> list[Record]:
    """The records with figures of speed and parity."""
    results = results_of(summaries)
    return [record.model_copy(update={"results": results[record.case]}) for record in records]


def chosen_contenders(names: str) -> tuple[str, ...]:
    """The contenders asked for, in order. Raises UserError for an unknown one, or for TRL where it is not installed."""
    chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    unknown = [name for name in chosen if name not in CONTENDERS]
    if unknown or not chosen:
        raise UserError(f"--contenders has {', '.join(unknown) or 'no name'}; choose from: {', '.join(CONTENDERS)}")
    needs_trl = [name for name in chosen if CONTENDERS[name].needs_trl]
    if needs_trl and find_spec("trl") is None:
        raise UserError(
            f"{', '.join(needs_trl)} need TRL, which is not installed: run pip install 'gemfleet[bench]', "
            "or leave them out with --contenders"
        )
    return chosen


def load_batches(model_folder: Path, arguments: argparse.Namespace) -> list[Batch]:
    """Tokenise the demo's question-answer rows and choose the batches."""
    from gemfleet.train.data.demo import demo_data_rows
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    examples = examples_from_rows(demo_data_rows(), tokenizer, arguments.shortest_answer)
    return choose_batches(examples, arguments.batch, arguments.warmup + arguments.steps, arguments.seed)


def describe(arguments: argparse.Namespace, model_folder: Path, batches: Sequence[Batch]) -> dict[str, Any]:
    """The setting of the measurement, as the records keep it."""
    return {
        "model": "Gemma 3 270M (packaged)" if arguments.model is None else model_folder.name,
        "device": "cpu",
        "batch": arguments.batch,
        "warmup_steps": arguments.warmup,
        "measured_steps": arguments.steps,
        "threads": arguments.threads,
        "recipe": json.loads(json.dumps(asdict(Recipe(seed=arguments.seed)))),
        "data": {
            "source": "question-answer rows of chatterbot-corpus",
            "prompt": PROMPT,
            "shortest_answer_tokens": arguments.shortest_answer,
            "tokens": token_statistics(batches),
            "tokens_per_step": [batch_tokens(batch) for batch in batches],
            "supervised_tokens_per_step": [batch_supervised_tokens(batch) for batch in batches],
        },
    }


def summarise_all(records: Sequence[Record], batches: Sequence[Batch], warmup: int) -> list[Summary]:
    """One summary per contender, its losses set against the first finished repeat of the reference."""
    outcomes = {record.case: [Outcome.of_run(record.case, run) for run in record.runs] for record in records}
    references = (outcome.losses for outcome in outcomes.get(REFERENCE, []) if outcome.error is None)
    reference = next(references, None)
    tokens = [batch_tokens(batch) for batch in batches]
    supervised = [batch_supervised_tokens(batch) for batch in batches]
    return [summarise(name, found, warmup, tokens, supervised, reference) for name, found in outcomes.items()]


def _demo_model() -> Path:
    from gemfleet.train.data.demo import demo_model_folder

    return Path(demo_model_folder())
