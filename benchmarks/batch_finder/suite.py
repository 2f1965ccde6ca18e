"""Find the micro-batch under simulated memory caps: time, trials, and the speed of what was chosen beside the best of
all sizes that fit, measured one by one and then in pairs. Training at that size must stay below the cap. Beside it
accelerate's `find_executable_batch_size` on the same model and cap.

One rank on this machine's CPU; the figures say nothing about GPUs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemfleet.train.config.schema import TrainConfig
from rich.console import Console

from ..shared.record import new_record, write_stamped
from .measure import Size, Tell, accelerate_search, as_record, every_size, gemfleet_search, with_cap
from .pairs import compare
from .tiny import save_tiny
from .training import train_under_cap
from .verdict import misses, table_of

RESULTS = Path(__file__).resolve().parents[1] / "results"
REPORT_WIDTH = 120
PAIRED_REPEATS = 5
SEARCHERS = ("gemfleet", "accelerate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m benchmarks batch-finder`."""
    parser.add_argument("--model", type=Path, help="folder of a Gemma 3 (default: the packaged 270M)")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model in its place")
    parser.add_argument("--max-length", type=int, default=128, help="tokens in a row (default: 128)")
    parser.add_argument("--largest", type=int, default=16, help="largest size measured (default: 16)")
    parser.add_argument(
        "--room", default="2,4,8,12", help="caps, as the rows that fit below each with the margin (default: 2,4,8,12)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds over every size (default: 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON record goes")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the record; the last line printed is its summary as JSON. 1: a figure missed."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=REPORT_WIDTH)
    with tempfile.TemporaryDirectory(prefix="batch-finder-") as scratch, console.status("starting") as status:
        folder = _model_folder(arguments, Path(scratch))
        sizes, results = measure(arguments, folder, status.update)
    console.print(table_of(results))
    for sentence in misses(results):
        console.print(f"missed: {sentence}")
    config = {
        "model": _model_name(arguments),
        "device": "cpu",
        "max_length": arguments.max_length,
        "largest": arguments.largest,
        "repeats": arguments.repeats,
    }
    found = {"every_size": [size.__dict__ for size in sizes], "under_caps": results}
    path = write_stamped(new_record("batch-finder", "caps", config, results=found), arguments.out)
    worst = min(result["gemfleet"]["of_best"] for result in results)
    print(json.dumps({"suite": "batch-finder", "worst_share_of_best": round(worst, 4), "record": path.name}))
    return 1 if misses(results) else 0


def measure(arguments: argparse.Namespace, folder: Path, tell: Tell) -> tuple[list[Size], list[dict[str, Any]]]:
    """Every size; then for each cap both searches and training; at last what was chosen beside the best, in pairs."""
    config, largest = _config(arguments.max_length), arguments.largest
    sizes = every_size(config, folder, largest, arguments.repeats, tell)
    caps = [cap_for(int(rows), sizes, config.batch.memory_margin) for rows in arguments.room.split(",")]
    results = [_under_cap(config, folder, largest, cap, sizes, tell) for cap in caps]
    searches = [result[name] | {"best": result["best_rows"]} for result in results for name in SEARCHERS]
    pairs = sorted({(found["rows"], found["best"]) for found in searches if "rows" in found})
    shares = {(p.chosen, p.best): p for p in compare(config, folder, pairs, PAIRED_REPEATS, tell)}
    for result in results:
        for name in SEARCHERS:
            if "rows" in result[name]:
                pair = shares[result[name]["rows"], result["best_rows"]]
                result[name] |= {"of_best": pair.share, "ratios": pair.ratios}
    return sizes, results


def cap_for(rows: int, sizes: Sequence[Size], margin: float) -> int:
    """A cap under which `rows` rows fit with the margin, and half a row more."""
    growth = (sizes[-1].peak_bytes - sizes[0].peak_bytes) / (len(sizes) - 1)
    return int((sizes[0].peak_bytes + (rows - 0.5) * growth) / (1 - margin))


def best_size(cap_bytes: int, sizes: Sequence[Size]) -> int:
    """The fastest of all sizes whose peak is within the whole cap."""
    return max((size for size in sizes if size.peak_bytes <= cap_bytes), key=lambda size: size.speed).rows


def _under_cap(
    config: TrainConfig, folder: Path, largest: int, cap: int, sizes: Sequence[Size], tell: Tell
) -> dict[str, Any]:
    capped = with_cap(config, cap)
    ours = gemfleet_search(capped, folder, largest, tell)
    tell(f"training with {ours.rows} rows")
    training = train_under_cap(capped, folder, ours.rows)
    tell("accelerate")
    return {
        "cap_bytes": cap,
        "best_rows": best_size(cap, sizes),
        "gemfleet": as_record(ours),
        "training": training,
        "accelerate": as_record(accelerate_search(config, folder, largest, cap)),
    }


def _config(max_length: int) -> TrainConfig:
    values = {
        "model": "demo",
        "data": {"train": "demo", "max_length": max_length},
        "batch": {"global": 64, "micro": "probe"},
        "strategy": "ddp",
        "activation_checkpointing": "off",
    }
    return TrainConfig.model_validate(values)


def _model_folder(arguments: argparse.Namespace, scratch: Path) -> Path:
    if arguments.tiny:
        return save_tiny(scratch / "tiny")
    if arguments.model:
        return Path(arguments.model).resolve()
    from gemfleet.train.data.demo import demo_model_folder

    return Path(demo_model_folder())


def _model_name(arguments: argparse.Namespace) -> str:
    if arguments.tiny:
        return "tiny random Gemma 3"
    return "Gemma 3 270M (packaged)" if arguments.model is None else arguments.model.name
