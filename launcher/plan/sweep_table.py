"""Prints what fits where, of all sizes, GPUs and numbers of them, as Markdown: `gemfleet plan --sweep`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

from gemfleet.train.config.sections.sharing import LOSS_CHUNK_ROWS
from gemfleet.train.planning import GPUS, SIZES, Choice, Device, Fleet, ModelShape, Workload
from gemfleet.train.planning.choice import candidates, fitting_choices
from gemfleet.train.planning.options import Quantization

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
BASES: tuple[Quantization, ...] = ("none", "int8", "int4")
NOTHING = "-"
LEGEND = (
    "Each cell is the first that fits, with a tenth of the memory free: the base whole (`ddp`) or divided among the "
    "GPUs (`fsdp2`), in 16 bits, else `int8`, else `int4`. `kept`: gathered layers stay until backward; `s` and `f`: "
    "selective and full activation checkpointing; a number: rows in a chunk of the loss, where 2,048 do not fit."
)


def sweep_table(work: Workload) -> str:
    """The tables of all five sizes. work: its quantisation does not count, as the least that fits is looked for."""
    rows = f"{work.micro} row{'s' if work.micro > 1 else ''} of {work.length} tokens in a pass"
    parts = [f"{rows}, adapters of rank {work.lora_rank}. {LEGEND}"]
    parts += ["\n".join([f"## Gemma 3 {shape.name}\n", *_table(shape, work)]) for shape in SIZES.values()]
    return "\n\n".join(parts) + "\n"


def _table(shape: ModelShape, work: Workload) -> Iterator[str]:
    yield "| GPU | GiB | " + " | ".join(map(str, COUNTS)) + " |"
    yield "|---|---:|" + "---|" * len(COUNTS)
    for alike in alike_gpus():
        cells = [cell(shape, work, alike[0], Fleet(count)) for count in COUNTS]
        names, gib = ", ".join(device.name for device in alike), alike[0].memory_bytes / 2**30
        yield f"| {names} | {gib:.0f} | " + " | ".join(cells) + " |"


def alike_gpus() -> list[list[Device]]:
    """All GPUs, those of equal memory and precision together, the smallest first."""

    def likeness(device: Device) -> tuple[int, bool]:
        return device.memory_bytes, device.bf16

    return [list(alike) for _, alike in groupby(sorted(GPUS.values(), key=likeness), key=likeness)]


def cell(shape: ModelShape, work: Workload, device: Device, fleet: Fleet) -> str:
    """What fits on this fleet, in short."""
    dtype = work.dtype if device.bf16 else "fp32"
    for base in BASES:
        tried = replace(work, quantization=base, dtype=dtype)
        found = fitting_choices(candidates(shape, tried, fleet), shape, tried, fleet, device.memory_bytes)
        if found:
            return _short(found[0], base)
    return NOTHING


def _short(choice: Choice, base: Quantization) -> str:
    sharing = choice.sharing
    bits = "" if base == "none" else f"{base} "
    kept = "" if sharing.reshard or sharing.name != "fsdp2" else " kept"
    recomputed = {"off": "", "selective": " s", "full": " f"}[sharing.checkpointing]
    chunk = "" if choice.chunk_rows == LOSS_CHUNK_ROWS["cuda"][0] else f" {choice.chunk_rows}"
    return f"{bits}{sharing.name}{kept}{recomputed}{chunk}"
