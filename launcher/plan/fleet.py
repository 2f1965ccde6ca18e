"""Compares the strategies for a run on a fleet of GPUs, by memory and speed: the answer of `gemfleet plan`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from gemfleet.train.errors import UserError
from gemfleet.train.planning import (
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
)
from gemfleet.train.planning.choice import all_sharings, fits, with_chunk
from gemfleet.train.planning.counts import language_parameters, lora_parameters, tower_parameters, vision_parameters
from gemfleet.train.planning.options import Checkpointing
from gemfleet.train.planning.rows import rows_by_plan

GIB = 2**30
MOST_GPUS = 512


@dataclass(frozen=True)
class Row:
    """One strategy on the fleet."""

    sharing: Sharing
    memory: MemoryParts
    fits: bool
    speed: Speed


@dataclass(frozen=True)
class SizingReport:
    """All strategies on a fleet, and the chosen one. notes: sentences about what the figures assume"""

    shape: ModelShape
    work: Workload
    fleet: Fleet
    device: Device
    rows: tuple[Row, ...]
    choice: Choice
    speed: Speed
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report for `--json`, in bytes, seconds, and tokens per second of one GPU."""
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
    context: int | Literal["auto"] = 1,
) -> SizingReport:
    """Compare all strategies on this fleet. Raises UserError for a fleet of the wrong size, and for shared pictures.

    checkpointing: None: the plan chooses it; rows_open: whether the plan chooses the rows of a pass, too
    context: as `train.context_parallel`
    """
    if not 1 <= fleet.ranks <= MOST_GPUS:
        raise UserError(f"--gpus is {fleet.ranks}; give a number from 1 to {MOST_GPUS}")
    if context != "auto" and fleet.ranks % context:
        raise UserError(
            f"train.context_parallel is {context}, but {fleet.ranks} GPUs do not form groups of {context}; "
            f"give --gpus as a multiple of {context}, or --context-parallel auto"
        )
    if context not in (1, "auto") and work.pictures != "none":
        raise UserError(
            f"train.context_parallel is {context}, but rows hold pictures, whose tokens see one another and must lie "
            "on one rank; leave out --pictures, or give --context-parallel 1"
        )
    if context not in (1, "auto") and work.by_speed:
        raise UserError(
            f"--context-parallel is {context}, but GPUs get shares by their speed (train.batch.shares is speed, or "
            "cluster.gpu_kind is any), and those that share passes wait for one another; give --context-parallel 1"
        )
    notes = []
    if not device.bf16 and work.dtype == "bf16":
        work = replace(work, dtype="fp32")
        notes.append(f"{device.name} has no bf16, so the run would be in fp32.")
    choice = choose_strategy(shape, work, fleet, device.memory_bytes, checkpointing=checkpointing, context=context)
    if rows_open and choice.fits:
        most = math.ceil(work.global_batch * choice.sharing.context / fleet.ranks)  # an example fills one row at most
        chunked = replace(work, chunk_rows=choice.chunk_rows)
        planned = rows_by_plan(shape, chunked, choice.sharing, fleet.ranks, device.memory_bytes, "cuda", most)
        notes.append(f"{planned.rows} rows in a pass by the plan: {planned.reason}.")
        work = replace(work, micro=planned.rows)
        choice = choose_strategy(shape, work, fleet, device.memory_bytes, checkpointing=checkpointing, context=context)
    alone = all_sharings(work, fleet, choice.sharing.checkpointing)
    rows = tuple(_row(shape, work, replace(s, context=choice.sharing.context), device, fleet) for s in alone)
    notes += _notes(work, device, fleet) + _note_on_pictures(shape, work)
    speed = expected_speed(shape, work, choice.sharing, device, fleet)
    return SizingReport(shape, work, fleet, device, rows, choice, speed, tuple(notes))


def _row(shape: ModelShape, work: Workload, sharing: Sharing, device: Device, fleet: Fleet) -> Row:
    work = with_chunk(shape, work, sharing, fleet.ranks, device.memory_bytes, "cuda")
    memory = memory_per_rank(shape, work, sharing, fleet.ranks)
    return Row(sharing, memory, fits(memory, device.memory_bytes), expected_speed(shape, work, sharing, device, fleet))


def _option(sharing: Sharing, memory: MemoryParts, fits_: bool, speed: Speed) -> dict[str, Any]:
    return {
        "strategy": sharing.name,
        "activation_checkpointing": sharing.checkpointing,
        "reshard_after_forward": sharing.reshard if sharing.name == "fsdp2" else None,
        "context_parallel": sharing.context,
        "fits": fits_,
        "memory_bytes": {**asdict(memory), "total": memory.total},
        "speed": asdict(speed),
    }


def _note_on_pictures(shape: ModelShape, work: Workload) -> list[str]:
    if work.pictures == "none":
        return []
    if shape.vision is None:
        raise UserError(f"--pictures is given, but Gemma 3 {shape.name} does not see; 4b, 12b and 27b do")
    vision, b = shape.vision, work.bytes_per_value
    tower, one = tower_parameters(vision) * b / GIB, vision.soft_tokens * vision.hidden * b / 1e6
    if work.pictures == "anew":
        return [f"The vision tower ({tower:.2f} GiB, among the weights) runs in each step, and is not in the speeds."]
    return [
        f"The vision tower ({tower:.2f} GiB) sees each picture before training and is gone then; disks keep "
        f"{one:.2f} MB a picture on each node."
    ]


def _notes(work: Workload, device: Device, fleet: Fleet) -> list[str]:
    notes = [
        "Speeds are arithmetic with an assumed share of the ceiling (65% from 4B, 50% for 1B, 35% for 270M); "
        "no speed of several GPUs was measured.",
        f"{device.name}: {device.memory_bytes / GIB:.1f} GiB, {device.tflops:g} TFLOP/s ({device.source}).",
    ]
    if work.quantization != "none":
        notes.append("DeepSpeed takes no quantised base, so ddp and fsdp2 are the strategies for it.")
    if fleet.ranks > fleet.ranks_per_node:
        nodes = -(-fleet.ranks // fleet.ranks_per_node)
        notes.append(f"{nodes} nodes, joined by {fleet.network_gbit_s:g} Gbit/s each.")
    return notes
