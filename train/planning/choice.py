"""Chooses a run's strategy, and says why in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .context import contexts
from .memory import MemoryParts, memory_per_rank
from .options import CHECKPOINTING, Checkpointing, DeviceKind, Fleet, Sharing, SharingName, Workload
from .remedies import Remedy, helpful
from .shapes import ModelShape

MARGIN = 0.10  # the share of the device's memory that a plan leaves free
GIB = 2**30
Allowed = Callable[[Workload, Fleet], Sequence[Sharing]]  # the sharings that a run may use, the best first


@dataclass(frozen=True)
class Choice:
    """sharing: the choice, or the one nearest to fitting if `fits` is False; reason: a sentence for people"""

    sharing: Sharing
    memory: MemoryParts
    fits: bool
    reason: str


def choose_strategy(
    shape: ModelShape,
    work: Workload,
    fleet: Fleet,
    memory_bytes: int,
    device: DeviceKind = "cuda",
    checkpointing: Checkpointing | None = None,
    context: int | Literal["auto"] = 1,
) -> Choice:
    """The first that fits of ddp and fsdp2, each with as little activation checkpointing as possible.

    ddp moves only adapters, once a step; fsdp2 gathers the frozen base in every pass. So the base is divided only if
    it must be.

    memory_bytes: of one rank's device; checkpointing: None leaves that choice to the plan
    context: ranks that share each pass; auto: the fewest with which something fits
    """

    def allowed(work: Workload, fleet: Fleet) -> Sequence[Sharing]:
        return in_contexts(candidates(shape, work, fleet, checkpointing), context, work, fleet)

    return choose_among(allowed, shape, work, fleet, memory_bytes, device)


def choose_among(
    allowed: Allowed,
    shape: ModelShape,
    work: Workload,
    fleet: Fleet,
    memory_bytes: int,
    device: DeviceKind = "cuda",
) -> Choice:
    """The first allowed sharing that fits, or the one nearest to fitting. Where none fits, `reason` names remedies."""
    sharings = allowed(work, fleet)
    fitting = fitting_choices(sharings, shape, work, fleet, memory_bytes, device)
    if fitting:
        return fitting[0]
    sharing, parts = min(_tried(sharings, shape, work, fleet, device), key=lambda pair: pair[1].total)
    limit = f"{memory_bytes * (1 - MARGIN) / GIB:.1f} of {memory_bytes / GIB:.1f} GiB may be used"
    found = _remedies(allowed, shape, work, fleet, memory_bytes, device)
    remedy = "; or ".join(found or ["use a device with more memory, or a smaller model"])
    reason = f"nothing fits: {sharing} needs {parts.total / GIB:.1f} GiB and {limit}; {remedy}"
    return Choice(sharing, parts, False, reason)


def fitting_choices(
    sharings: Sequence[Sharing],
    shape: ModelShape,
    work: Workload,
    fleet: Fleet,
    memory_bytes: int,
    device: DeviceKind = "cuda",
) -> list[Choice]:
    """All of the sharings that fit, in the given order."""
    tried = _tried(sharings, shape, work, fleet, device)
    return [
        Choice(sharing, parts, True, _reason(sharing, parts, _alike(tried, sharing), memory_bytes))
        for sharing, parts in tried
        if fits(parts, memory_bytes)
    ]


def in_contexts(
    sharings: Sequence[Sharing], asked: int | Literal["auto"], work: Workload, fleet: Fleet
) -> list[Sharing]:
    """The sharings with each number of ranks that may share a pass, the fewest first."""
    return [replace(sharing, context=size) for size in contexts(asked, work, fleet) for sharing in sharings]


def candidates(
    shape: ModelShape, work: Workload, fleet: Fleet, checkpointing: Checkpointing | None = None
) -> list[Sharing]:
    """The sharings to try, in order of preference.

    A quantised base is always whole on each rank, and so is the base of a single rank. fsdp2 gathers the head with the
    embedding, so both must be one weight.
    """
    modes: Sequence[Checkpointing] = CHECKPOINTING if checkpointing is None else (checkpointing,)
    found = [Sharing("ddp", mode) for mode in modes]
    if fleet.ranks > 1 and work.quantization == "none" and shape.tied:
        found += [Sharing("fsdp2", mode, reshard) for mode in modes for reshard in (False, True)]
    return found


def all_sharings(work: Workload, fleet: Fleet, checkpointing: Checkpointing) -> list[Sharing]:
    """Every strategy that this fleet and this base allow, for a table."""
    names: tuple[SharingName, ...] = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
    if fleet.ranks == 1 or work.quantization != "none":
        names = ("ddp",)
    return [Sharing(name, checkpointing) for name in names]


def fits(parts: MemoryParts, memory_bytes: int) -> bool:
    """Whether a plan leaves `MARGIN` of the memory free."""
    return parts.total <= int(memory_bytes * (1 - MARGIN))


def _tried(
    sharings: Sequence[Sharing], shape: ModelShape, work: Workload, fleet: Fleet, device: DeviceKind
) -> list[tuple[Sharing, MemoryParts]]:
    return [(sharing, memory_per_rank(shape, work, sharing, fleet.ranks, device)) for sharing in sharings]


def _with_checkpointing(sharing: Sharing) -> str:
    return str(sharing).replace("ddp, ", "ddp with ", 1)


def _alike(tried: Sequence[tuple[Sharing, MemoryParts]], sharing: Sharing) -> list[tuple[Sharing, MemoryParts]]:
    """Those in which as many ranks share a pass."""
    return [pair for pair in tried if pair[0].context == sharing.context]


def _reason(
    sharing: Sharing, parts: MemoryParts, tried: Sequence[tuple[Sharing, MemoryParts]], memory_bytes: int
) -> str:
    takes = f"takes {parts.total / GIB:.1f} of {memory_bytes / GIB:.1f} GiB"
    plain = tried[0][1].total / GIB
    replicated = min((p.total for s, p in tried if s.name == "ddp"), default=None)
    if replicated is None:
        less = sharing.checkpointing != tried[0][0].checkpointing
        return f"{sharing} {takes}" + (f"; without recomputation it would take {plain:.1f} GiB" if less else "")
    only = "only adapter gradients" if sharing.context == 1 else "only adapter gradients and keys and values of passes"
    if sharing.name == "ddp" and sharing.checkpointing == tried[0][0].checkpointing:
        return f"{sharing}: the whole base fits on every rank ({takes}), and {only} move between ranks"
    if sharing.name == "ddp":
        return (
            f"{_with_checkpointing(sharing)} {takes}; without, it would take {plain:.1f} GiB. The base stays whole on "
            f"every rank, so {only} move between ranks"
        )
    least = f"{replicated / GIB:.1f} GiB"
    return f"{sharing} {takes}; with the whole base on every rank it would take at least {least}"


def _remedies(
    allowed: Allowed, shape: ModelShape, work: Workload, fleet: Fleet, memory_bytes: int, device: DeviceKind
) -> list[str]:
    """What would make the run fit, with the memory that it then takes."""

    def helps(remedy: Remedy) -> str | None:
        ways = candidates(shape, remedy.work, remedy.fleet) if remedy.free else allowed(remedy.work, remedy.fleet)
        if remedy.context is not None:
            ways = [replace(way, context=remedy.context) for way in ways]
        found = fitting_choices(ways, shape, remedy.work, remedy.fleet, memory_bytes, device)
        return f"{found[0].memory.total / GIB:.1f} GiB by {found[0].sharing}" if found else None

    return helpful(work, fleet, device, helps)
