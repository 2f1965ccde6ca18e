"""Time one LoRA training step of several trainers on the same examples, on this machine's CPU; compare their losses.

Contenders take turns, each in a fresh process with all cores: gemfleet, TRL in three modes, transformers' Trainer and a
plain PyTorch loop. The figures hold for the CPU they were taken on and say nothing about GPUs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gemfleet.train.errors import UserError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import machine
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
from .report import build_record, print_table, summary_line, write_record
from .runner import run_all
from .stats import REFERENCE, Outcome, Summary, summarise
from .task import Recipe, Task

RESULTS = Path(__file__).resolve().parents[1] / "results"
# Columns of the table in a log file; a terminal has its own width.
REPORT_WIDTH = 140


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m benchmarks peers`."""
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="names with commas between (default: all)")
    parser.add_argument("--steps", type=_positive, default=6, help="measured steps of a repeat (default: 6)")
    parser.add_argument("--warmup", type=_positive, default=2, help="unmeasured steps before them (default: 2)")
    parser.add_argument("--repeats", type=_positive, default=3, help="fresh processes per contender (default: 3)")
    parser.add_argument("--batch", type=_positive, default=4, help="examples in a step (default: 4)")
    parser.add_argument("--threads", type=_positive, default=machine.usable_cores(), help="default: one per core")
    parser.add_argument(
        "--seed", type=int, default=42, help="chooses the examples and the initial adapter (default: 42)"
    )
    parser.add_argument(
        "--shortest-answer",
        type=_positive,
        default=SHORTEST_ANSWER,
        help=f"leave out examples with fewer supervised tokens (default: {SHORTEST_ANSWER}, for Alpaca-like lengths)",
    )
    parser.add_argument("--model", type=Path, help="folder of a Gemma 3 (default: the packaged 270M)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="where the JSON record goes (default: benchmarks/results)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="1 repeat of 1 warm-up and 2 measured steps: a check, no claim"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the record; the last line printed is its summary as JSON."""
    if arguments.quick:
        arguments.warmup, arguments.steps, arguments.repeats = 1, 2, 1
    console = Console()
    if not console.is_terminal:
        console = Console(width=REPORT_WIDTH)
    contenders = chosen_contenders(arguments.contenders)
    model_folder = arguments.model.resolve() if arguments.model else _demo_model()
    batches = load_batches(model_folder, arguments)
    setting = describe(arguments, contenders, model_folder, batches)
    with tempfile.TemporaryDirectory(prefix="peers-adapter-") as folder:
        recipe = Recipe(seed=arguments.seed)
        task = Task(model_folder, Path(folder) / "initial.safetensors", tuple(batches), recipe, arguments.threads)
        write_initial_adapter(model_folder, recipe, task.adapter_file)
        outcomes = measure(task, contenders, arguments.repeats, console)
    summaries = summarise_all(contenders, outcomes, batches, arguments.warmup)
    record = build_record(setting, outcomes, summaries)
    path = write_record(record, arguments.out)
    print_table(console, summaries, setting["data"]["tokens"])
    print(summary_line(record, path))
    return 1 if any(summary.errors for summary in summaries) else 0


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
    from gemfleet.train.demo import demo_data_rows
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    examples = examples_from_rows(demo_data_rows(), tokenizer, arguments.shortest_answer)
    return choose_batches(examples, arguments.batch, arguments.warmup + arguments.steps, arguments.seed)


def describe(
    arguments: argparse.Namespace, contenders: Sequence[str], model_folder: Path, batches: Sequence[Batch]
) -> dict[str, Any]:
    """The setting of the measurement, as the record keeps it."""
    return {
        "command": machine.command_line(),
        "git_commit": machine.git_commit(),
        "hardware": machine.hardware(),
        "versions": machine.versions(),
        "config": {
            "model": "Gemma 3 270M (packaged)" if arguments.model is None else model_folder.name,
            "device": "cpu",
            "contenders": {name: CONTENDERS[name].summary for name in contenders},
            "batch": arguments.batch,
            "warmup_steps": arguments.warmup,
            "measured_steps": arguments.steps,
            "repeats": arguments.repeats,
            "threads": arguments.threads,
            "recipe": asdict(Recipe(seed=arguments.seed)),
        },
        "data": {
            "source": "question-answer rows of chatterbot-corpus",
            "prompt": PROMPT,
            "shortest_answer_tokens": arguments.shortest_answer,
            "tokens": token_statistics(batches),
            "tokens_per_step": [batch_tokens(batch) for batch in batches],
            "supervised_tokens_per_step": [batch_supervised_tokens(batch) for batch in batches],
        },
    }


def measure(task: Task, contenders: Sequence[str], repeats: int, console: Console) -> list[Outcome]:
    """Run all contenders with a progress bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        line = bar.add_task("loading", total=len(task.batches) * len(contenders) * repeats)

        def advance(contender: str, repeat: int, steps_done: int) -> None:
            bar.update(line, advance=1, description=f"{contender}, repeat {repeat + 1} of {repeats}, step {steps_done}")

        return run_all(task, contenders, repeats, advance)


def summarise_all(
    contenders: Sequence[str], outcomes: Sequence[Outcome], batches: Sequence[Batch], warmup: int
) -> list[Summary]:
    """One summary per contender, its losses set against the first finished repeat of the reference."""
    references = (outcome.losses for outcome in outcomes if outcome.contender == REFERENCE and outcome.error is None)
    reference = next(references, None)
    tokens = [batch_tokens(batch) for batch in batches]
    supervised = [batch_supervised_tokens(batch) for batch in batches]
    return [
        summarise(name, [o for o in outcomes if o.contender == name], warmup, tokens, supervised, reference)
        for name in contenders
    ]


def _demo_model() -> Path:
    from gemfleet.train.demo import demo_model_folder

    return Path(demo_model_folder())


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value
