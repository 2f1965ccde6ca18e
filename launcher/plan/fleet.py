"""What a run needs of a fleet of GPUs and what it can expect of them: the answer of `gemfleet plan`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gemfleet.launcher.config.schema import WorkerRange
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.model.resolve import read_model_config
from gemfleet.train.planning import (
    GPUS,
    SIZES,
    Choice,
    Device,
    Fleet,
    MemoryParts,
    ModelShape,
    Sharing,
    Speed,
    Workload,
    choose_strategy,
    expected_speed,
    memory_per_rank,
    shape_of_config,
)
from gemfleet.train.planning.auto_strategy import workload_of
from gemfleet.train.planning.choice import all_sharings, fits
from gemfleet.train.planning.counts import language_parameters, lora_parameters, vision_parameters
from gemfleet.train.planning.options import Checkpointing
from gemfleet.train.planning.rows import rows_by_plan

from .dry_run import local_model_facts

GIB = 2**30
MOST_GPUS = 512
WIDE_TABLE = 112  # cells that the table with every part takes


@dataclass(frozen=True)
class Row:
    """One strategy on this fleet."""

    sharing: Sharing
    memory: MemoryParts
    fits: bool
    speed: Speed


@dataclass(frozen=True)
class SizingReport:
    """All strategies side by side, and the one that is chosen. notes: what the figures take for granted."""

    shape: ModelShape
    work: Workload
    fleet: Fleet
    device: Device
    rows: tuple[Row, ...]
    choice: Choice
    speed: Speed
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: bytes, seconds, tokens per second of one GPU."""
        return {
            "model": {
                **asdict(self.shape),
                "language_parameters": language_parameters(self.shape),
                "vision_parameters": vision_parameters(self.shape),
                "lora_parameters": lora_parameters(self.shape, self.work.lora_rank, self.work.lora_targets),
            },
            "workload": asdict(self.work),
            "fleet": asdict(self.fleet),
            "device": asdict(self.device),
            "chosen": {
                **_option(self.choice.sharing, self.choice.memory, self.choice.fits, self.speed),
                "reason": self.choice.reason,
            },
            "strategies": [_option(row.sharing, row.memory, row.fits, row.speed) for row in self.rows],
            "notes": list(self.notes),
        }


def size_up(
    shape: ModelShape,
    work: Workload,
    device: Device,
    fleet: Fleet,
    checkpointing: Checkpointing | None,
    rows_open: bool = False,
) -> SizingReport:
    """Every strategy on this fleet. checkpointing: None lets the choice decide; the table shows what it decided.

    rows_open: whether the rows of a pass are the plan's to choose, too, rather than `work.micro`
    """
    if not 1 <= fleet.ranks <= MOST_GPUS:
        raise UserError(f"--gpus is {fleet.ranks}; give a number from 1 to {MOST_GPUS}")
    notes = []
    if not device.bf16 and work.dtype == "bf16":
        work = replace(work, dtype="fp32")
        notes.append(f"{device.name} has no bf16, so the run would be in fp32.")
    choice = choose_strategy(shape, work, fleet, device.memory_bytes, checkpointing=checkpointing)
    if rows_open and choice.fits:
        most = math.ceil(work.global_batch / fleet.ranks)  # no example fills more than a row
        planned = rows_by_plan(shape, work, choice.sharing, fleet.ranks, device.memory_bytes, "cuda", most)
        notes.append(f"{planned.rows} rows in a pass by the plan: {planned.reason}.")
        work = replace(work, micro=planned.rows)
        choice = choose_strategy(shape, work, fleet, device.memory_bytes, checkpointing=checkpointing)
    rows = tuple(_row(shape, work, s, device, fleet) for s in all_sharings(work, fleet, choice.sharing.checkpointing))
    notes += _notes(work, device, fleet)
    speed = expected_speed(shape, work, choice.sharing, device, fleet)
    return SizingReport(shape, work, fleet, device, rows, choice, speed, tuple(notes))


def find_shape(model: str) -> ModelShape:
    """One of the five sizes (`27b`, or a hub id that names it), or the config.json of a model folder here."""
    if model.lower() in SIZES:
        return SIZES[model.lower()]
    if (Path(model).expanduser() / "config.json").is_file():
        return shape_of_config(read_model_config(Path(model).expanduser()), Path(model).name)
    facts = local_model_facts(model)
    if facts is not None:
        return shape_of_config(facts.config, model)
    if model == "demo":
        return SIZES["270m"]
    named = [size for size in SIZES if f"gemma-3-{size}" in model.lower()]
    if named:
        return SIZES[named[0]]
    raise UserError(f"--model is {model!r}; give one of {', '.join(SIZES)}, or a folder with a Gemma 3 config.json")


def find_device(name: str) -> Device:
    """A GPU of the table by its name."""
    try:
        return GPUS[name.lower()]
    except KeyError:
        raise UserError(f"--gpu is {name!r}; give one of {', '.join(GPUS)}") from None


def work_of_config(config: TrainConfig, example_tokens: int | None, supervised: float) -> Workload:
    """What a configuration file says of one rank's work."""
    dtype: Literal["bf16", "fp32"] = "fp32" if config.precision == "fp32" else "bf16"
    return replace(workload_of(config, dtype), example_tokens=example_tokens, supervised=supervised)


def ranks_of(workers: int | str | WorkerRange) -> int | None:
    """The ranks that a configuration asks for, of an elastic run the fewest; None where it leaves them open."""
    if isinstance(workers, WorkerRange):
        return workers.min
    return workers if isinstance(workers, int) else None


def table_rows(report: SizingReport, width: int = WIDE_TABLE) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, in GiB: one line for each strategy, the chosen one marked.

    width: cells that there are for a line; below `WIDE_TABLE` the smaller parts are one column, `other`
    """
    columns = ["strategy", "weights", "adapters", "grads", "AdamW", "activations", "logits", "comm", "rest", "GiB"]
    columns += ["fits", "tokens/s/GPU", "of ceiling"]
    rows = [_cells(row, row.sharing.name == report.choice.sharing.name, width >= WIDE_TABLE) for row in report.rows]
    if width < WIDE_TABLE:
        columns = ["strategy", "weights", "activations", "other", "GiB", "fits", "tokens/s/GPU", "of ceiling"]
    return columns, rows


def _cells(row: Row, chosen: bool, wide: bool) -> list[str]:
    m = row.memory
    shared, rest, work = m.gathered + m.communication, m.runtime, m.activations + m.transient
    small = (m.adapters, m.gradients, m.optimizer)
    parts = (
        (m.weights, *small, work, m.logits, shared, rest)
        if wide
        else (m.weights, work, sum(small) + m.logits + shared + rest)
    )
    speed = [f"{row.speed.expected:,.0f}", f"{row.speed.share_of_ceiling:.0%}"] if row.fits else ["", ""]
    return [
        row.sharing.name + (" *" if chosen else ""),
        *(f"{part / GIB:.2f}" for part in parts),
        f"{m.total / GIB:.1f}",
        "yes" if row.fits else "no",
        *speed,
    ]


def _row(shape: ModelShape, work: Workload, sharing: Sharing, device: Device, fleet: Fleet) -> Row:
    memory = memory_per_rank(shape, work, sharing, fleet.ranks)
    return Row(sharing, memory, fits(memory, device.memory_bytes), expected_speed(shape, work, sharing, device, fleet))


def _option(sharing: Sharing, memory: MemoryParts, fits_: bool, speed: Speed) -> dict[str, Any]:
    return {
        "strategy": sharing.name,
        "activation_checkpointing": sharing.checkpointing,
        "reshard_after_forward": sharing.reshard if sharing.name == "fsdp2" else None,
        "fits": fits_,
        "memory_bytes": {**asdict(memory), "total": memory.total},
        "speed": asdict(speed),
    }


def _notes(work: Workload, device: Device, fleet: Fleet) -> Sequence[str]:
    notes = [
        "Speeds are arithmetic with an assumed share of the ceiling (65% from 4B, 50% for 1B, 35% for 270M); "
        "no speed of several GPUs was measured.",
        f"{device.name}: {device.memory_bytes / GIB:.1f} GiB, {device.tflops:g} TFLOP/s ({device.source}).",
    ]
    if work.quantization != "none":
        notes.append("A quantised base is only held whole on every GPU, so ddp is the only strategy.")
    if fleet.ranks > fleet.ranks_per_node:
        nodes = -(-fleet.ranks // fleet.ranks_per_node)
        notes.append(f"{nodes} nodes, joined by {fleet.network_gbit_s:g} Gbit/s each.")
    return notes
