"""How training scales over workers of this machine: weak (each worker keeps its rows) and strong (the rows are shared).

Efficiency is T_N / (N T_1), T_1 being the fastest single worker of all micro-batches tried, compared round by round.
On a CPU a worker has one thread; several GPUs of one machine are used where there are some. No network is measured.

  gemfleet bench scaling --quick
  gemfleet bench scaling --workers 1,2,4 --modes weak --micro 2
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gemfleet.benchmarks.shared.measuring import Case
from gemfleet.benchmarks.shared.models import REAL, SHAPES
from gemfleet.benchmarks.shared.record import Record
from gemfleet.benchmarks.shared.section import Chart, Section, Series, Table, taken
from gemfleet.benchmarks.shared.suite import names, numbers, positive
from gemfleet.benchmarks.training.base import TrainingSuite, resolved_device
from gemfleet.benchmarks.training.case import STRATEGIES, TrainingCase
from gemfleet.benchmarks.training.figures import notes, table
from gemfleet.train.errors import UserError

from .efficiency import MODES, Point, efficiencies

COLUMNS = (
    "mode",
    "workers",
    "rows each",
    "best micro",
    "tokens/s",
    "efficiency",
    "least-most",
    "MB on the wire a step",
)


class Scaling(TrainingSuite):
    name = "scaling"
    steps, threads = 6, 1
    quick: Mapping[str, Any] = {
        **TrainingSuite.quick,
        "model": "tiny",
        "precision": "fp32",
        "length": 128,
        "micro": "2",
    }

    def add_options(self, add: Callable[..., Any]) -> None:
        add("--model", choices=SHAPES, default=REAL, help=f"size (default: {REAL})")
        add("--strategy", choices=STRATEGIES, default="ddp", help="default: ddp")
        add("--precision", choices=("bf16", "fp32"), default="bf16", help="default: bf16")
        add("--workers", default="1,2", help="numbers of workers, with commas between, 1 among them (default: 1,2)")
        add("--modes", default="weak,strong", help=f"of {', '.join(MODES)} (default: both)")
        add("--length", type=positive, default=256, help="tokens in a row (default: 256)")
        add("--rows", type=positive, default=2, help="rows of a worker in a step when weak (default: 2)")
        add("--micro", default="1,2", help="rows in a pass, each tried with every number of workers (default: 1,2)")
        super().add_options(add)

    def cases(self, options: argparse.Namespace) -> Sequence[Case]:
        """Each case once, though weak and strong share some."""
        workers, modes = numbers("--workers", options.workers), names("--modes", options.modes, MODES)
        if 1 not in workers:
            raise UserError(f"--workers is {options.workers}, but scaling is told against one worker; begin with 1,")
        total = options.rows * max(workers)
        if "strong" in modes and any(total % count for count in workers):
            raise UserError(f"{total} rows cannot be shared evenly by --workers {options.workers}; give another --rows")
        rows = {(count, options.rows) for count in workers if "weak" in modes}
        rows |= {(count, total // count) for count in workers if "strong" in modes}
        fields = ("model", "strategy", "precision", "length", "document", "threads", "warmup", "steps")
        fixed = {name: getattr(options, name) for name in fields} | {"save_every": 0}
        fixed["device"] = resolved_device(options.device)
        return [
            TrainingCase(**fixed, ranks=count, rows=each, micro=micro).as_case()
            for count, each in sorted(rows)
            for micro in numbers("--micro", options.micro)
            if micro <= each
        ]

    def section(self, records: Sequence[Record]) -> Section:
        points = efficiencies(records)
        tables = [Table(COLUMNS, [cells(point) for point in points]), table(records)]
        setting = [_setting(records[0]), *notes(records)]
        return Section("Scaling", taken(records), tables, [chart(points)] if points else [], setting)

    def summary(self, records: Sequence[Record]) -> dict[str, Any]:
        points = efficiencies(records)
        return {"efficiency": {f"{point.mode}-{point.workers}": round(point.efficiency, 4) for point in points}}


def chart(points: Sequence[Point]) -> Chart:
    """Tokens per second by workers, beside those of as many best single workers."""
    series = []
    for mode in dict.fromkeys(point.mode for point in points):
        mine = [point for point in points if point.mode == mode]
        series.append(Series(f"{mode} scaling", [float(p.workers) for p in mine], [p.tokens_per_second for p in mine]))
    one = max(point.tokens_per_second for point in points if point.workers == 1)
    x = sorted({float(point.workers) for point in points})
    series.append(Series("ideal: N times the best single worker", x, [one * n for n in x], ideal=True))
    return Chart("scaling", "Scaling", "line", "workers", "non-pad tokens per second, all workers", series)


def cells(point: Point) -> list[str]:
    return [
        *(point.mode, str(point.workers), str(point.rows), str(point.micro)),
        f"{point.tokens_per_second:,.1f}",
        f"{point.efficiency:.1%}",
        f"{point.least:.1%}-{point.most:.1%}",
        f"{point.wire_bytes / 1e6:.2f}",
    ]


def _setting(record: Record) -> str:
    config = record.config
    return (
        f"{config['model']}, {config['strategy']}, {config['precision']}, rows of {config['length']} tokens, "
        f"{config['threads']} thread(s) a worker, all workers on one machine: no network is in these figures. "
        "Efficiency is against the fastest single worker, round by round: median, least and most."
    )


SUITE = Scaling()
