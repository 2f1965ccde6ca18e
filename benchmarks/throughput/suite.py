"""How fast training is: every combination of sizes, strategies, precisions, row lengths, micro-batches and activation
checkpointing that is asked for, each in fresh processes, through training's own loop.

A figure holds for the device it was taken on; those of a CPU say nothing about GPUs. docs/benchmarks.md says what each
column means.

  gemfleet bench throughput --quick
  gemfleet bench throughput --models 270m --lengths 256,1024 --micro 1,4 --checkpointing off
  gemfleet bench throughput --strategies ddp,fsdp2 --ranks 2 --profile
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gemfleet.benchmarks.shared import machine
from gemfleet.benchmarks.shared.measuring import Case
from gemfleet.benchmarks.shared.models import REAL, SHAPES
from gemfleet.benchmarks.shared.record import Record
from gemfleet.benchmarks.shared.section import GIB, Chart, Section, Series, taken
from gemfleet.benchmarks.shared.suite import names, numbers
from gemfleet.benchmarks.training.base import TrainingSuite, resolved_device
from gemfleet.benchmarks.training.case import STRATEGIES, TrainingCase
from gemfleet.benchmarks.training.figures import notes, table

CHOICES = {
    "strategies": ("strategy", STRATEGIES, "ddp"),
    "precisions": ("precision", ("bf16", "fp32"), "bf16"),
    "quantizations": ("quantization", ("none", "int8", "int4"), "none"),
    "checkpointing": ("checkpointing", ("off", "selective", "full"), "off,full"),
}


class Throughput(TrainingSuite):
    name = "throughput"
    quick: Mapping[str, Any] = {
        **TrainingSuite.quick,
        "models": "tiny",
        "lengths": "128",
        "micro": "1",
        "checkpointing": "off",
        "precisions": "fp32",
        "save_every": 2,
    }

    def add_options(self, add: Callable[..., Any]) -> None:
        add("--models", default=f"tiny,{REAL}", help=f"of {', '.join(SHAPES)}, commas between (default: tiny,{REAL})")
        for option, (_, known, default) in CHOICES.items():
            add(f"--{option}", default=default, help=f"of {', '.join(known)} (default: {default})")
        add("--lengths", default="512", help="tokens in a row (default: 512)")
        add("--micro", default="1,2", help="rows in a pass; a step has as many rows as the largest (default: 1,2)")
        add("--ranks", default="1", help="processes that train together (default: 1)")
        add("--supervised", type=_share, default=0.5, help="share of tokens that the loss scores (default: 0.5)")
        add("--save-every", type=int, default=5, help="steps between checkpoints, 0: none (default: 5)")
        add("--profile", action="store_true", help="leave a Chrome trace and a table of operators beside each record")
        super().add_options(add)

    def cases(self, options: argparse.Namespace) -> Sequence[Case]:
        """Every combination."""
        device, micros = resolved_device(options.device), numbers("--micro", options.micro)
        axes: dict[str, Sequence[Any]] = {"model": names("--models", options.models, tuple(SHAPES))}
        for option, (field, known, _) in CHOICES.items():
            axes[field] = names(f"--{option}", getattr(options, option), known)
        axes |= {"length": numbers("--lengths", options.lengths), "micro": micros}
        axes["ranks"] = numbers("--ranks", options.ranks)
        fixed = {"rows": max(micros), "device": device, "document": options.document, "supervised": options.supervised}
        fixed |= {"warmup": options.warmup, "steps": options.steps, "save_every": options.save_every}
        found = []
        for combination in itertools.product(*axes.values()):
            values = dict(zip(axes, combination, strict=True))
            threads = options.threads or max(1, machine.usable_cores() // values["ranks"])
            found.append(TrainingCase(**values, **fixed, threads=threads).as_case())
        return found

    def section(self, records: Sequence[Record]) -> Section:
        good = [record for record in records if record.results]
        charts = [speed_chart(good), breakdown_chart(good), memory_chart(good)] if good else []
        return Section("Throughput of training", taken(records), [table(records)], charts, notes(records))


def speed_chart(records: Sequence[Record]) -> Chart:
    """Tokens per second, grouped by size and shape of the batch."""
    series = []
    for variant in dict.fromkeys(map(_variant, records)):
        mine = [record for record in records if _variant(record) == variant]
        rates = [record.results["tokens_per_second"] for record in mine]
        shapes = [f"{r.config['model']} {r.config['length']}x{r.config['micro']}" for r in mine]
        series.append(Series(variant, shapes, *([rate[part] for rate in rates] for part in ("median", "p10", "p90"))))
    x_title, y_title = "size, row length x rows in a pass", "non-pad tokens per second"
    note = "Median of the measured steps of all runs; whiskers: 10th and 90th percentile."
    return Chart("throughput-by-size", "Throughput by size", "bar", x_title, y_title, series, note)


def breakdown_chart(records: Sequence[Record]) -> Chart:
    """What shares of the time went into waiting."""
    cases = [record.case for record in records]
    waits = {
        "waiting for data": "data",
        "waiting for communication": "communication",
        "held up by saving": "checkpoints",
    }
    shares = {
        title: [100 * record.results[f"share_waiting_for_{key}"] for record in records] for title, key in waits.items()
    }
    rest = [100 - sum(values) for values in zip(*shares.values(), strict=True)]
    series = [Series("computing", cases, rest), *(Series(title, cases, values) for title, values in shares.items())]
    return Chart("step-breakdown", "Where the time of training goes", "stack", "", "% of wall time", series)


def memory_chart(records: Sequence[Record]) -> Chart:
    """Peak memory of a rank against rows in a pass."""
    kinds: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        name = f"{record.config['model']} {record.config['length']}, {_variant(record)}"
        point = float(record.config["micro"]), record.results["peak_memory_bytes"] / GIB
        kinds.setdefault(name, []).append(point)
    series = [Series(name, *map(list, zip(*sorted(points), strict=True))) for name, points in kinds.items()]
    y_title = "peak memory of a rank, GiB"
    return Chart("memory-by-batch", "Memory against batch", "line", "rows in a pass", y_title, series)


def _variant(record: Record) -> str:
    config = record.config
    parts = [config["strategy"], config["precision"]]
    parts += [config["quantization"]] if config["quantization"] != "none" else []
    parts += [f"{config['ranks']} ranks"] if config["ranks"] > 1 else []
    return " ".join([*parts, f"checkpointing {config['checkpointing']}"])


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0 and at most 1")
    return value


SUITE = Throughput()
