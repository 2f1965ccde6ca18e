"""Find the micro-batch under simulated memory caps: time, trials, and the speed of what was chosen beside the best of
all sizes that fit, measured one by one. Beside it accelerate's `find_executable_batch_size` on the same model and cap.

One rank on this machine's CPU; the figures say nothing about GPUs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemfleet.train.config import TrainConfig
from rich.console import Console
from rich.table import Table

from ..shared.record import new_record, write_stamped
from .measure import Search, Size, accelerate_search, as_record, every_size, gemfleet_search, with_cap

RESULTS = Path(__file__).resolve().parents[1] / "results"
REPORT_WIDTH = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m benchmarks batch-finder`."""
    parser.add_argument("--model", type=Path, help="folder of a Gemma 3 (default: the packaged 270M)")
    parser.add_argument("--max-length", type=int, default=128, help="tokens in a row (default: 128)")
    parser.add_argument("--largest", type=int, default=16, help="largest size measured (default: 16)")
    parser.add_argument(
        "--room", default="2,4,8,12", help="caps, as the rows that fit below each with the margin (default: 2,4,8,12)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds over every size (default: 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON record goes")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the record; the last line printed is its summary as JSON."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=REPORT_WIDTH)
    folder = arguments.model.resolve() if arguments.model else _demo_model()
    recipe = _config(arguments.max_length)
    with console.status("starting") as status:
        sizes = every_size(recipe, folder, arguments.largest, arguments.repeats, status.update)
        caps = [cap_for(int(rows), sizes, recipe.batch.memory_margin) for rows in arguments.room.split(",")]
        results = [_under_cap(recipe, folder, arguments.largest, cap, sizes, status.update) for cap in caps]
    _print(console, results)
    config = {
        "model": "Gemma 3 270M (packaged)" if arguments.model is None else folder.name,
        "device": "cpu",
        "max_length": arguments.max_length,
        "largest": arguments.largest,
        "repeats": arguments.repeats,
    }
    found = {"every_size": [size.__dict__ for size in sizes], "under_caps": results}
    path = write_stamped(new_record("batch-finder", "caps", config, results=found), arguments.out)
    worst = min(result["of_best"] for result in results)
    print(json.dumps({"suite": "batch-finder", "worst_share_of_best": round(worst, 4), "record": path.name}))
    return 0


def cap_for(rows: int, sizes: Sequence[Size], margin: float) -> int:
    """A cap under which `rows` rows fit with the margin, and half a row more."""
    growth = (sizes[-1].peak_bytes - sizes[0].peak_bytes) / (len(sizes) - 1)
    return int((sizes[0].peak_bytes + (rows - 0.5) * growth) / (1 - margin))


def share_of_best(rows: int, cap_bytes: int, sizes: Sequence[Size]) -> tuple[float, int]:
    """The measured speed of `rows` as a share of the fastest size within the cap, and that size."""
    best = max((size for size in sizes if size.peak_bytes <= cap_bytes), key=lambda size: size.speed)
    chosen = next(size for size in sizes if size.rows == rows)
    return chosen.speed / best.speed, best.rows


def _under_cap(
    config: TrainConfig, folder: Path, largest: int, cap: int, sizes: Sequence[Size], tell: Any
) -> dict[str, Any]:
    ours = gemfleet_search(with_cap(config, cap), folder, largest, tell)
    tell("accelerate")
    theirs = accelerate_search(config, folder, largest, cap)
    share, best = share_of_best(ours.rows, cap, sizes)
    peer = as_record(theirs)
    if isinstance(theirs, Search):
        peer["of_best"] = share_of_best(theirs.rows, cap, sizes)[0]
    return {
        "cap_bytes": cap,
        "best_rows": best,
        "of_best": share,
        "gemfleet": as_record(ours),
        "accelerate": peer,
    }


def _print(console: Console, results: Sequence[dict[str, Any]]) -> None:
    table = Table(title="micro-batch found under a cap, CPU, one rank")
    for column in ("cap GiB", "best of all", "", "rows", "of best", "seconds", "trials"):
        table.add_column(column, justify="right")
    for result in results:
        for name in ("gemfleet", "accelerate"):
            found = result[name]
            share = result["of_best"] if name == "gemfleet" else found.get("of_best")
            facts = [found["error"], "", "", ""]
            if "error" not in found:
                facts = [str(found["rows"]), f"{share:.1%}", f"{found['seconds']:.1f}", str(found["trials"])]
            table.add_row(f"{result['cap_bytes'] / 2**30:.2f}", str(result["best_rows"]), name, *facts)
    console.print(table)


def _config(max_length: int) -> TrainConfig:
    values = {
        "model": "demo",
        "data": {"train": "demo", "max_length": max_length},
        "batch": {"global": 64, "micro": "auto"},
        "activation_checkpointing": "off",
    }
    return TrainConfig.model_validate(values)


def _demo_model() -> Path:
    from gemfleet.train.demo import demo_model_folder

    return Path(demo_model_folder())
