"""How fast training is: every combination of sizes, strategies, precisions, row lengths, micro-batches and activation
checkpointing that is asked for, each in fresh processes, through training's own loop.

A figure holds for the device it was taken on; those of a CPU say nothing about GPUs. docs/benchmarks.md says what each
column means.

  gemfleet bench throughput --quick
  gemfleet bench throughput --models 270m --lengths 256,1024 --micro 1,4 --checkpointing off
  gemfleet bench throughput --strategies ddp,fsdp2 --ranks 2 --profile
  gemfleet bench throughput --device cuda --models 1b --lengths 2048 --micro 8 --rows 16 --compile off,on --document 0
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from gemfleet.benchmarks.shared import machine
from gemfleet.benchmarks.shared.models import REAL, SHAPES
from gemfleet.benchmarks.shared.section import GIB, Chart, Section, Series, taken
from gemfleet.benchmarks.shared.suite import Add, Case, Options, Record, names, numbers, positive
from gemfleet.benchmarks.training.case import STRATEGIES, TrainingCase, TrainingSuite, resolved_device
from gemfleet.benchmarks.training.figures import notes, table

# Options of names with commas between: what each decides, the names there are, and the default.
CHOICES: Mapping[str, tuple[str, Sequence[str], str]] = {
    "models": ("model", tuple(SHAPES), f"tiny,{REAL}"),
    "strategies": ("strategy", STRATEGIES, "ddp"),
    "precisions": ("precision", ("bf16", "fp32"), "bf16"),
    "quantizations": ("quantization", ("none", "int8", "int4"), "none"),
    "checkpointing": ("checkpointing", ("off", "selective", "full"), "off,full"),
    "compile": ("compile", ("off", "on"), "off"),
}
COUNTS = {"length": "lengths", "micro": "micro", "ranks": "ranks"}
QUICK = {"models": "tiny", "lengths": "128", "micro": "1", "checkpointing": "off", "precisions": "fp32"}
WAITS = {"waiting for data": "data", "waiting for communication": "communication", "held up by saving": "checkpoints"}


class Throughput(TrainingSuite):
    name = "throughput"
    quick: Mapping[str, Any] = {**TrainingSuite.quick, **QUICK, "save_every": 2}

    def add_options(self, add: Add) -> None:
        for option, (_, known, default) in CHOICES.items():
            add(f"--{option}", default=default, help=f"of {', '.join(known)} (default: {default})")
        add("--lengths", default="512", help="tokens in a row (default: 512)")
        add("--micro", default="1,2", help="rows in a pass (default: 1,2)")
        add("--rows", type=positive, help="rows of a rank in a step (default: the largest of --micro)")
        add("--ranks", default="1", help="processes that train together (default: 1)")
        add("--save-every", type=int, default=5, help="steps between checkpoints, 0: none (default: 5)")
        add("--profile", action="store_true", help="leave a Chrome trace and a table of operators beside each record")
        super().add_options(add)

    def cases(self, options: Options) -> Sequence[Case]:
        """Every combination."""
        given, every = vars(options), dict[str, Sequence[Any]]()
        every |= {field: names(f"--{n}", given[n], known) for n, (field, known, _) in CHOICES.items()}
        every |= {field: numbers(f"--{n}", given[n]) for field, n in COUNTS.items()}
        fields = ("document", "warmup", "steps", "save_every")
        fixed = {name: given[name] for name in fields}
        fixed |= {"rows": options.rows or max(every["micro"]), "device": resolved_device(options.device)}
        found = []
        for combination in itertools.product(*every.values()):
            values = dict(zip(every, combination, strict=True))
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
        speed: Any = [[rate[part] for rate in rates] for part in ("median", "p10", "p90")]
        series.append(Series(variant, shapes, *speed))
    x_title, y_title = "size, row length x rows in a pass", "non-pad tokens per second"
    return Chart("throughput-by-size", "Throughput by size", "bar", x_title, y_title, series)


def breakdown_chart(records: Sequence[Record]) -> Chart:
    """What shares of the time went into waiting."""
    cases = [record.case for record in records]
    shares = {title: [100 * r.results[f"share_waiting_for_{key}"] for r in records] for title, key in WAITS.items()}
    rest = [100 - sum(values) for values in zip(*shares.values(), strict=True)]
    series = [Series(title, cases, values) for title, values in {"computing": rest, **shares}.items()]
    return Chart("step-breakdown", "Where the time of training goes", "stack", "", "% of wall time", series)


def memory_chart(records: Sequence[Record]) -> Chart:
    """Peak memory of a rank against rows in a pass."""
    kinds: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        name = f"{record.config['model']} {record.config['length']}, {_variant(record)}"
        point = float(record.config["micro"]), record.results["peak_memory_bytes"] / GIB
        kinds.setdefault(name, []).append(point)
    series = [
        Series(name, [x for x, _ in sorted(points)], [y for _, y in sorted(points)]) for name, points in kinds.items()
    ]
    y_title = "peak memory of a rank, GiB"
    return Chart("memory-by-batch", "Memory against batch", "line", "rows in a pass", y_title, series)


def _variant(record: Record) -> str:
    config = record.config
    parts = [config["strategy"], config["precision"], config["quantization"].replace("none", "")]
    parts += [f"{config['ranks']} ranks"] if config["ranks"] > 1 else []
    parts += ["compiled"] if config.get("compile") == "on" else []
    return " ".join(part for part in [*parts, f"checkpointing {config['checkpointing']}"] if part)


SUITE = Throughput()
