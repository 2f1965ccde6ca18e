"""Train two steps of several shapes, each in a fresh process on this machine's CPU, and set the peak of its resident
set beyond its baseline against what `gemfleet plan` foretells. Weights are random; no model is read."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gemfleet.train.errors import UserError
from gemfleet.train.planning import MemoryParts

from ..shared import machine
from ..shared.children import child_environment
from ..shared.record import Record, new_record, write_stamped
from .cases import CASES, Case

RESULTS = Path(__file__).resolve().parents[1] / "results"
TOLERANCE = 0.20
GIB = 2**30


@dataclass(frozen=True)
class Result:
    """measured: peak of the resident set beyond the baseline, in bytes."""

    case: Case
    predicted: MemoryParts
    measured: int
    baseline: int

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured; positive where too much was foretold."""
        return self.predicted.total / self.measured - 1

    @property
    def holds(self) -> bool:
        return abs(self.error) <= TOLERANCE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m benchmarks plan`."""
    parser.add_argument("--cases", default=",".join(CASES), help="names with commas between (default: all)")
    parser.add_argument("--threads", type=int, default=machine.usable_cores(), help="default: one per core")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the record goes (default: benchmarks/results)")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write record and table; the last line is JSON. 1 where a prediction is off by more."""
    results = []
    for case in chosen_cases(arguments.cases):
        results.append(measure(case, arguments.threads))
        print(table_line(results[-1]), flush=True)
    record = build_record(results, arguments.threads)
    path = write(record, results, arguments.out)
    worst = max((result.error for result in results), key=abs)
    print(json.dumps({"suite": "plan", "record": path.name, "cases": len(results), "worst_error": round(worst, 4)}))
    return 0 if all(result.holds for result in results) else 1


def chosen_cases(names: str) -> list[Case]:
    """The cases asked for, in order. Raises UserError for one that does not exist."""
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in CASES]
    if unknown or not chosen:
        raise UserError(f"--cases has {', '.join(unknown) or 'no name'}; choose from: {', '.join(CASES)}")
    return [CASES[name] for name in dict.fromkeys(chosen)]


def measure(case: Case, threads: int) -> Result:
    """One fresh process for each rank; the rank that takes most counts. UserError with its last words if one fails."""
    from ..shared.random_base import save_random_base

    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        if case.needs_files:
            save_random_base(case.shape(), case.torch_dtype, Path(folder))
        ranks = [start(case, threads, Path(folder), rank) for rank in range(case.ranks)]
        answers = [rank.communicate()[0] for rank in ranks]
        for number, rank in enumerate(ranks):
            if rank.returncode != 0:
                words = errors_file(Path(folder), number).read_text().strip().splitlines() or ["it printed nothing"]
                raise UserError(f"a process of {case.name} ended with code {rank.returncode}: {words[-1]}")
    worst = max((json.loads(answer) for answer in answers), key=lambda found: int(found["peak_bytes"]))
    return Result(case, case.predicted(), int(worst["peak_bytes"]), int(worst["baseline_bytes"]))


def start(case: Case, threads: int, folder: Path, rank: int) -> subprocess.Popen[str]:
    """The cores are shared out among the ranks."""
    threads = max(1, threads // case.ranks)
    command = [sys.executable, "-m", f"{__package__}.child", case.name, str(threads), str(folder), str(rank)]
    with errors_file(folder, rank).open("w") as errors:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=child_environment(threads)
        )


def errors_file(folder: Path, rank: int) -> Path:
    """What a rank writes to its standard error: a file, as nobody reads it while ranks wait for one another."""
    return folder / f"errors-{rank}.txt"


def build_record(results: Sequence[Result], threads: int) -> Record:
    """Everything foretold and measured, in bytes, and on what."""
    shapes = [
        {
            "name": result.case.name,
            **asdict(result.case),
            "predicted_bytes": {**asdict(result.predicted), "total": result.predicted.total},
            "measured_bytes": result.measured,
            "baseline_bytes": result.baseline,
            "error": result.error,
        }
        for result in results
    ]
    return new_record(
        "plan", "memory", {"threads": threads, "tolerance": TOLERANCE, "device": "cpu"}, results={"shapes": shapes}
    )


def table_line(result: Result) -> str:
    """One row of the table, as Markdown."""
    p = result.predicted
    kept = p.activations + p.transient
    parts = (p.weights, p.adapters + p.gradients + p.optimizer, kept, p.logits, p.runtime, p.total, result.measured)
    return f"| {result.case.name} | " + " | ".join(f"{part / GIB:.2f}" for part in parts) + f" | {result.error:+.1%} |"


def write(record: Record, results: Sequence[Result], folder: Path) -> Path:
    """The record as JSON and the table as Markdown beside it; returns the former."""
    path = write_stamped(record, folder)
    path.with_suffix(".md").write_text(table(record, results), encoding="utf-8")
    return path


def table(record: Record, results: Sequence[Result]) -> str:
    """Predicted against measured, for people."""
    columns = ("weights", "adapter state", "activations", "logits", "runtime", "predicted", "measured")
    return "\n".join(
        (
            f"Memory of training on a CPU, in GiB: the plan against one fresh process each (`{record.command}`, "
            f"{record.hardware['cpu']}, torch {record.versions['torch']}).",
            "Measured: peak of the resident set beyond what it was once everything was imported. Random weights.",
            "",
            "| shape-dtype-length x rows | " + " | ".join(columns) + " | error |",
            "|---|" + "---:|" * (len(columns) + 1),
            *(table_line(result) for result in results),
            "",
        )
    )
