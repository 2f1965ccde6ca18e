"""Lists what a person can change where nothing fits, in the order of what it costs. `choice.py` asks which of it helps.

To add a remedy, add a line to `remedies`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

from .context import contexts
from .options import DeviceKind, Fleet, Workload

MOST_NAMED = 3  # remedies in a sentence
COUNTS = (2, 4, 8, 16, 32, 64, 128, 256, 512)
LENGTHS = (8192, 4096, 2048, 1024, 512, 256)


@dataclass(frozen=True)
class Remedy:
    """words: what to do, for people; work, fleet: what the run is then

    free: whether the plan may then use any strategy, also where the configuration names one
    context: ranks that share each pass; None: as it is
    """

    words: str
    work: Workload
    fleet: Fleet
    free: bool = False
    context: int | None = None


def remedies(work: Workload, fleet: Fleet, device: DeviceKind = "cuda") -> list[list[Remedy]]:
    """Each change as a list of its variants, the mildest first. The cheapest change comes first."""
    single = replace(work, micro=1)
    return [
        [Remedy("set train.batch.micro to 1", single, fleet)],
        [Remedy("leave train.loss_chunk_rows at auto", replace(single, chunk_rows=None), fleet)],
        [Remedy("leave train.strategy and train.activation_checkpointing at auto", single, fleet, free=True)],
        _shared_passes(single, fleet),
        [Remedy("set train.quantization to int8", replace(single, quantization="int8"), fleet)],
        [Remedy("set train.quantization to int4", replace(single, quantization="int4"), fleet)],
        _more_ranks(single, fleet, device),
        _shared_on_more_ranks(single, fleet, device),
        _shorter(single, fleet),
    ]


def joint_remedies(work: Workload, fleet: Fleet, device: DeviceKind = "cuda") -> list[list[Remedy]]:
    """Two changes at once, for where none of `remedies` is enough."""
    single = replace(work, micro=1, quantization="int4")
    return [
        [_also("set train.quantization to int4", remedy) for remedy in _more_ranks(single, fleet, device)],
        [_also("set train.quantization to int4", remedy) for remedy in _shorter(single, fleet)],
    ]


def helpful(work: Workload, fleet: Fleet, device: DeviceKind, helps: Callable[[Remedy], str | None]) -> list[str]:
    """The mildest variant of each change that helps, with its figure, at most `MOST_NAMED`.

    Two changes at once are named where no single one helps on this fleet.
    helps: the figure of a remedy that helps, in words; None for one that does not
    """
    found = _first_of_each(remedies(work, fleet, device), helps)
    if all(remedy.fleet != fleet for remedy, _ in found):
        found += _first_of_each(joint_remedies(work, fleet, device), helps)
    return [f"{remedy.words} ({figure})" for remedy, figure in found][:MOST_NAMED]


def _first_of_each(groups: list[list[Remedy]], helps: Callable[[Remedy], str | None]) -> list[tuple[Remedy, str]]:
    found = []
    for variants in groups:
        helping = ((remedy, figure) for remedy in variants if (figure := helps(remedy)) is not None)
        found += list(islice(helping, 1))
    return found


def _more_ranks(work: Workload, fleet: Fleet, device: DeviceKind) -> list[Remedy]:
    what = "GPUs" if device == "cuda" else "ranks on more machines"
    return [Remedy(f"use {n} {what}", work, replace(fleet, ranks=n)) for n in COUNTS if n > fleet.ranks]


def _shared_passes(work: Workload, fleet: Fleet) -> list[Remedy]:
    return [
        Remedy(f"set train.context_parallel to {size}", work, fleet, context=size)
        for size in contexts("auto", work, fleet)
        if size > 1
    ]


def _shared_on_more_ranks(work: Workload, fleet: Fleet, device: DeviceKind) -> list[Remedy]:
    """All ranks share each pass."""
    return [
        replace(_also(f"set train.context_parallel to {size}", more), context=size)
        for more in _more_ranks(work, fleet, device)
        if (size := more.fleet.ranks) in contexts("auto", work, more.fleet)
    ]


def _shorter(work: Workload, fleet: Fleet) -> list[Remedy]:
    return [
        Remedy(f"set train.data.max_length to {length}", replace(work, length=length), fleet)
        for length in LENGTHS
        if length < work.length
    ]


def _also(words: str, remedy: Remedy) -> Remedy:
    return replace(remedy, words=f"{words} and {remedy.words}")
