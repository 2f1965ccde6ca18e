"""Time one LoRA training step of several trainers on the same examples, on this machine's CPU; compare their losses.

Contenders take turns, each in a fresh process with all cores: gemfleet, TRL in three modes, transformers' Trainer and
a plain PyTorch loop. A trainer whose mean loss departs from the plain loop's by more than 0.5% does not count. Figures
hold for the CPU they were taken on and say nothing about GPUs.

  gemfleet bench peers --quick
  gemfleet bench peers --contenders gemfleet,plain --steps 6 --batch 4
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gemfleet.benchmarks.shared import machine
from gemfleet.benchmarks.shared.models import PACKAGED, packaged
from gemfleet.benchmarks.shared.processes import run_steps
from gemfleet.benchmarks.shared.section import GIB, Chart, Section, Series, Table, taken
from gemfleet.benchmarks.shared.suite import Add, Case, Measure, Options, Record, Run, Suite, Tick, names, positive
from gemfleet.train.errors import UserError

from .data import batch_tokens, describe_batches, load_batches
from .stats import REFERENCE, fastest, speed_ratios, summarise
from .task import Recipe, Task, write_initial_adapter

# Each contender's function, in a module that is imported only in the process that runs it, and what it does.
CONTENDERS = {
    "gemfleet": ("loops:train_gemfleet", "packed rows, loss at supervised positions only, in chunks"),
    "trl-default": ("trainers:train_trl_default", "TRL SFTTrainer with its defaults"),
    "trl-packed": ("trainers:train_trl_packed", "TRL SFTTrainer, packing (bfd, padding-free)"),
    "trl-best": ("trainers:train_trl_best", "TRL SFTTrainer, packing, bf16 weights, no activation checkpointing"),
    "transformers-trainer": ("trainers:train_transformers", "transformers Trainer, padded, full logits"),
    "plain": ("loops:train_plain", "PyTorch loop, padded, full logits; the reference for losses"),
}
COLUMNS = (
    *("trainer", "tokens/s", "p10-p90", "s/step", "peak GiB", "mean loss", "loss apart"),
    *("over TRL's default", "over TRL's best"),
)


class Peers(Suite):
    name = "peers"
    quick: Mapping[str, Any] = {"warmup": 1, "steps": 2}

    def add_options(self, add: Add) -> None:
        add("--contenders", default=",".join(CONTENDERS), help="names with commas between (default: all)")
        add("--steps", type=positive, default=6, help="measured steps of a repeat (default: 6)")
        add("--warmup", type=positive, default=2, help="unmeasured steps before them (default: 2)")
        add("--batch", type=positive, default=4, help="examples in a step (default: 4)")
        add("--model-folder", type=Path, help="weights of a Gemma 3 (default: the packaged 270M)")

    def cases(self, options: Options) -> Sequence[Case]:
        contenders, given = chosen_contenders(options.contenders), options.model_folder
        options.model_folder = given.resolve() if given else packaged()
        options.batches = load_batches(options.model_folder, options.batch, options.warmup + options.steps)
        config = {name: getattr(options, name) for name in ("batch", "warmup", "steps")}
        config |= {"model": given.name if given else PACKAGED, "device": "cpu", "threads": machine.usable_cores()}
        config |= {"recipe": Recipe().model_dump(mode="json"), "data": describe_batches(options.batches)}
        return [contender_case(name, config, options.warmup) for name in contenders]

    @contextmanager
    def measuring(self, options: Options) -> Iterator[Measure]:
        with tempfile.TemporaryDirectory(prefix="peers-") as folder:
            adapter, threads = Path(folder) / "initial.safetensors", machine.usable_cores()
            fixed: Any = {"model_folder": options.model_folder, "adapter_file": adapter, "threads": threads}
            task = Task(**fixed, batches=tuple(options.batches), recipe=Recipe())
            write_initial_adapter(task.model_folder, task.recipe, task.adapter_file)
            yield lambda case, run, tick: measure(task, case, run, tick)

    def results(self, record: Record) -> dict[str, Any]:
        return {}  # they need the reference's losses

    def side_by_side(self, records: list[Record]) -> list[Record]:
        """With figures of speed and parity; losses are set against the first finished repeat of the reference."""
        reference = next((run.losses for r in records if r.case == REFERENCE for run in r.good_runs), None)
        summaries = []
        for record in records:
            data = record.config["data"]
            counts = data["tokens_per_step"], data["supervised_tokens_per_step"]
            summaries.append(summarise(record.case, record.runs, record.warmup, *counts, reference))
        best = fastest(summaries, "trl-")
        over_default, over_best = speed_ratios(summaries, "trl-default"), speed_ratios(summaries, best)
        for record, summary in zip(records, summaries, strict=True):
            ratios = {"ratio_to_trl_default": over_default.get(record.case), "best_trl_mode": best}
            ratios["ratio_to_best_trl"] = over_best.get(record.case)
            record.results = {**asdict(summary), "counts": summary.counts, **ratios}
        return records

    def section(self, records: Sequence[Record]) -> Section:
        ordered = sorted(records, key=lambda record: -record.results["tokens_per_second"]["median"])
        rates = [record.results["tokens_per_second"] for record in ordered]
        speed: Any = [[rate[part] for rate in rates] for part in ("median", "p10", "p90")]
        bars, y_title = [Series("speed", [record.case for record in ordered], *speed)], "non-pad tokens per second"
        shares = {r.case: (r.results["parity"] or {}).get("per_step", ()) for r in ordered}
        apart = [Series(c, range(1, len(each) + 1), [100 * x for x in each]) for c, each in shares.items() if each]
        charts = [
            Chart("peers-speed", "One LoRA step beside other trainers", "bar", "", y_title, bars),
            Chart("peers-loss", "Loss parity", "line", "step", "loss apart from the plain loop's, %", apart),
        ]
        table = Table(COLUMNS, [cells(record) for record in ordered])
        return Section("Beside other trainers", taken(records), [table], charts, notes(ordered[0]))


def measure(task: Task, case: Case, run: Run, tick: Tick) -> None:
    """The contender in a fresh process."""
    target = f"gemfleet.benchmarks.peers.{CONTENDERS[case.name][0]}"
    run_steps(run, len(task.batches), tick, target, task.model_dump(mode="json"), threads=task.threads)
    run.tokens = [batch_tokens(batch) for batch in task.batches]


def contender_case(name: str, config: dict[str, Any], warmup: int) -> Case:
    return Case(name, {**config, "contender": CONTENDERS[name][1]}, warmup)


def chosen_contenders(asked: str) -> list[str]:
    """The contenders asked for, in order. Raises UserError for an unknown one, or for TRL where it is not installed."""
    chosen = names("--contenders", asked, tuple(CONTENDERS))
    needs_trl = [name for name in chosen if name.startswith("trl-")]
    if needs_trl and find_spec("trl") is None:
        raise UserError(
            f"{', '.join(needs_trl)} need TRL, which is not installed: run pip install 'gemfleet[bench]', "
            "or leave them out with --contenders"
        )
    return chosen


def cells(record: Record) -> list[str]:
    found = record.results
    rate, parity = found["tokens_per_second"], found["parity"]
    ratios = (found["ratio_to_trl_default"], found["ratio_to_best_trl"])
    return [
        record.case if found["counts"] else f"{record.case} (does not count)",
        f"{rate['median']:.1f}",
        f"{rate['p10']:.1f}-{rate['p90']:.1f}",
        f"{found['step_seconds']['median']:.2f}",
        f"{found['peak_rss_bytes'] / GIB:.2f}",
        *((f"{parity['mean_loss']:.4f}", f"{parity['mean_difference']:.3%}") if parity else ("-", "-")),
        *("-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios),
    ]


def notes(record: Record) -> list[str]:
    """What was trained on, and what the figures are; the same for all contenders."""
    data, best = record.config["data"]["tokens"], record.results["best_trl_mode"]
    return [
        f"The same {data['examples']} examples for all, in turn: mean {data['tokens_per_example_mean']} tokens, median "
        f"{data['tokens_per_example_median']}, longest {data['tokens_per_example_max']}, "
        f"{data['supervised_share']:.0%} supervised, {data['padding_share_when_padded']:.0%} padding where padded.",
        "tokens/s: non-pad tokens of a step over its seconds, median over all repeats. A loss more than 0.5% from the "
        f"plain loop's does not count. TRL's best mode: {best}. A CPU says nothing about GPUs.",
    ]


SUITE = Peers()
