"""How training scales over workers of this machine: weak (each worker keeps its rows) and strong (the rows are shared).

Efficiency is T_N / (N T_1), T_1 being the fastest single worker of all micro-batches tried, compared round by round.
On a CPU a worker has one thread; several GPUs of one machine are used where there are some. No network is measured.

  gemfleet bench scaling --quick
  gemfleet bench scaling --workers 1,2,4 --modes weak --micro 2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gemfleet.benchmarks.shared.models import REAL, SHAPES
from gemfleet.benchmarks.shared.record import median
from gemfleet.benchmarks.shared.section import Chart, Section, Series, Table, taken
from gemfleet.benchmarks.shared.suite import Add, Case, Options, Record, names, numbers, positive
from gemfleet.benchmarks.training.case import STRATEGIES, TrainingCase, TrainingSuite, resolved_device
from gemfleet.benchmarks.training.figures import notes, table
from gemfleet.train.errors import UserError

MODES = ("weak", "strong")
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
    quick: Mapping[str, Any] = dict(TrainingSuite.quick) | {
        "model": "tiny",
        "precision": "fp32",
        "length": 128,
        "micro": "2",
    }

    def add_options(self, add: Add) -> None:
        add("--model", choices=SHAPES, default=REAL, help=f"size (default: {REAL})")
        add("--strategy", choices=STRATEGIES, default="ddp", help="default: ddp")
        add("--precision", choices=("bf16", "fp32"), default="bf16", help="default: bf16")
        add("--workers", default="1,2", help="numbers of workers, with commas between, 1 among them (default: 1,2)")
        add("--modes", default="weak,strong", help=f"of {', '.join(MODES)} (default: both)")
        add("--length", type=positive, default=256, help="tokens in a row (default: 256)")
        add("--rows", type=positive, default=2, help="rows of a worker in a step when weak (default: 2)")
        add("--micro", default="1,2", help="rows in a pass, each tried with every number of workers (default: 1,2)")
        super().add_options(add)

    def cases(self, options: Options) -> Sequence[Case]:
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
        micros = numbers("--micro", options.micro)
        each = [(count, rows, micro) for count, rows in sorted(rows) for micro in micros if micro <= rows]
        return [TrainingCase(**fixed, ranks=count, rows=rows, micro=micro).as_case() for count, rows, micro in each]

    def section(self, records: Sequence[Record]) -> Section:
        points, config = efficiencies(records), records[0].config
        setting = (
            f"{config['model']}, {config['strategy']}, {config['precision']}, rows of {config['length']} tokens, "
            f"{config['threads']} thread(s) a worker, one machine and no network. Efficiency: against the fastest "
            "single worker, round by round; median, least and most."
        )
        tables = [Table(COLUMNS, [point.cells() for point in points]), table(records)]
        return Section("Scaling", taken(records), tables, [chart(points)] if points else [], [setting, *notes(records)])

    def summary(self, records: Sequence[Record]) -> dict[str, Any]:
        return {"efficiency": {f"{p.mode}-{p.workers}": round(p.efficiency, 4) for p in efficiencies(records)}}


class Point(NamedTuple):
    """tokens_per_second: of the best micro-batch; efficiency: median over rounds, with the least and the most."""

    mode: str
    workers: int
    rows: int
    micro: int
    tokens_per_second: float
    efficiency: float
    least: float
    most: float
    wire_bytes: int

    def cells(self) -> list[str]:
        shares, wire = f"{self.least:.1%}-{self.most:.1%}", f"{self.wire_bytes / 1e6:.2f}"
        where = (self.mode, str(self.workers), str(self.rows), str(self.micro))
        return [*where, f"{self.tokens_per_second:,.1f}", f"{self.efficiency:.1%}", shares, wire]


def efficiencies(records: Sequence[Record]) -> list[Point]:
    """Weak: as many rows for each worker as one has. Strong: one worker's rows shared. Empty without a single one."""
    good = [record for record in records if record.good_runs]
    singles = [record for record in good if record.config["ranks"] == 1]
    if not singles:
        return []
    reference = max(singles, key=_rate)  # the fastest single worker of all its rows and micro-batches
    every = sorted({record.config["ranks"] for record in good})
    points: list[Point] = []
    for mode in MODES:
        of_mode = []
        base = (min if mode == "weak" else max)(record.config["rows"] for record in singles)
        for workers in every:
            rows = base if mode == "weak" else base // workers
            found = [r for r in good if (r.config["ranks"], r.config["rows"]) == (workers, rows)]
            if found:
                of_mode.append(_point(mode, max(found, key=_rate), reference))
        if len(of_mode) == len(every):  # a single worker's rows alone make no mode
            points += of_mode
    return points


def _point(mode: str, record: Record, reference: Record) -> Point:
    workers, rows, micro = (int(record.config[name]) for name in ("ranks", "rows", "micro"))
    ours, theirs = round_rates(record), round_rates(reference)
    shares = [ours[repeat] / (workers * theirs[repeat]) for repeat in ours if repeat in theirs] or [float("nan")]
    wire = int(record.runs[-1].facts["wire_bytes_per_step"])
    return Point(mode, workers, rows, micro, _rate(record), median(shares), min(shares), max(shares), wire)


def round_rates(record: Record) -> dict[int, float]:
    """Median tokens per second of each round."""
    return {
        run.repeat: median([t / s for t, s in zip(run.tokens, run.step_seconds, strict=True)][record.warmup :])
        for run in record.good_runs
    }


def _rate(record: Record) -> float:
    return median(list(round_rates(record).values()))


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


SUITE = Scaling()
