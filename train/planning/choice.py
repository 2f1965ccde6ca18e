"""Chooses a run's strategy, and says why in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..config.sections.sharing import LOSS_CHUNK_ROWS
from .context import contexts
from .memory import MemoryParts, memory_per_rank
from .options import CHECKPOINTING, Checkpointing, DeviceKind, Fleet, Sharing, SharingName, Workload
from .remedies import Remedy, helpful
from .shapes import ModelShape

MARGIN = 0.10  # the share of the device's memory that a plan leaves free
GIB = 2**30
# On a GPU, reading the head for so few rows of the loss costs more than selective recomputation: the last resort.
FEW_CHUNK_ROWS = 128
Allowed = Callable[[Workload, Fleet], Sequence[Sharing]]  # the sharings that a run may use, the best first


@dataclass(frozen=True)
class Choice:
    """sharing: the choice, or the one nearest to fitting if `fits` is False; reason: a sentence for people

    chunk_rows: positions whose logits exist at once, see `with_chunk`
    """

    sharing: Sharing
    memory: MemoryParts
    fits: bool
    reason: str
    chunk_rows: int


@dataclass(frozen=True)
class _Tried:
    sharing: Sharing
    chunk_rows: int
    memory: MemoryParts


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
    tried = _tried(sharings, shape, work, fleet, memory_bytes, device)
    nearest = min(tried, key=lambda one: one.memory.total)
    limit = f"{memory_bytes * (1 - MARGIN) / GIB:.1f} of {memory_bytes / GIB:.1f} GiB may be used"
    found = _remedies(allowed, shape, work, fleet, memory_bytes, device)
    remedy = "; or ".join(found or ["use a device with more memory, or a smaller model"])
    reason = f"nothing fits: {nearest.sharing} needs {nearest.memory.total / GIB:.1f} GiB and {limit}; {remedy}"
    return Choice(nearest.sharing, nearest.memory, False, reason, nearest.chunk_rows)


def fitting_choices(
    sharings: Sequence[Sharing],
    shape: ModelShape,
    work: Workload,
    fleet: Fleet,
    memory_bytes: int,
    device: DeviceKind = "cuda",
) -> list[Choice]:
    """All of the sharings that fit, in the given order, but those whose loss must go in very small chunks come last.

    Both for each number of ranks that share a pass, the fewest first.
    """
    tried = _tried(sharings, shape, work, fleet, memory_bytes, device)
    most = LOSS_CHUNK_ROWS[device][0]
    found = [
        Choice(one.sharing, one.memory, True, _reason(one, _alike(tried, one), memory_bytes, most), one.chunk_rows)
        for one in tried
        if fits(one.memory, memory_bytes)
    ]

    def rank(choice: Choice) -> tuple[int, bool]:
        return choice.sharing.context, device == "cuda" and choice.chunk_rows <= FEW_CHUNK_ROWS

    return sorted(found, key=rank)


def with_chunk(
    shape: ModelShape, work: Workload, sharing: Sharing, ranks: int, memory_bytes: int, device: DeviceKind
) -> Workload:
    """The work with the largest chunk of the loss that fits, or the smallest there is; unchanged if it names one.

    A chunk only decides how often the head's weight is read, and large ones cost less than recomputation.
    """
    if work.chunk_rows is not None:
        return work
    tried = [replace(work, chunk_rows=rows) for rows in LOSS_CHUNK_ROWS[device]]
    fitting = (one for one in tried if fits(memory_per_rank(shape, one, sharing, ranks, device), memory_bytes))
    return next(fitting, tried[-1])


def in_contexts(
    sharings: Sequence[Sharing], asked: int | Literal["auto"], work: Workload, fleet: Fleet
) -> list[Sharing]:
    """The sharings with each number of ranks that may share a pass, the fewest first."""
    return [replace(sharing, context=size) for size in contexts(asked, work, fleet) for sharing in sharings]


def candidates(
    shape: ModelShape, work: Workload, fleet: Fleet, checkpointing: Checkpointing | None = None
) -> list[Sharing]:
    """The sharings to try, in order of preference.

    The base of a single rank is whole. fsdp2 gathers the head with the embedding, so both must be one weight.
    """
    modes: Sequence[Checkpointing] = CHECKPOINTING if checkpointing is None else (checkpointing,)
    found = [Sharing("ddp", mode) for mode in modes]
    if fleet.ranks > 1 and shape.tied:
        found += [Sharing("fsdp2", mode, reshard) for mode in modes for reshard in (False, True)]
    return found


def all_sharings(work: Workload, fleet: Fleet, checkpointing: Checkpointing) -> list[Sharing]:
    """Every strategy that this fleet and this base allow, for a table."""
    names: tuple[SharingName, ...] = ("ddp",) if fleet.ranks == 1 else ("ddp", "fsdp2")
    if fleet.ranks > 1 and work.quantization == "none":  # DeepSpeed takes no quantised base
        names = (*names, "zero1", "zero2", "zero3")
    return [Sharing(name, checkpointing) for name in names]


def fits(parts: MemoryParts, memory_bytes: int) -> bool:
    """Whether a plan leaves `MARGIN` of the memory free."""
    return parts.total <= int(memory_bytes * (1 - MARGIN))


def _tried(
    sharings: Sequence[Sharing],
    shape: ModelShape,
    work: Workload,
    fleet: Fleet,
    memory_bytes: int,
    device: DeviceKind,
) -> list[_Tried]:
    found = []
    for sharing in sharings:
        chunked = with_chunk(shape, work, sharing, fleet.ranks, memory_bytes, device)
        assert chunked.chunk_rows is not None
        parts = memory_per_rank(shape, chunked, sharing, fleet.ranks, device)
        found.append(_Tried(sharing, chunked.chunk_rows, parts))
    return found


def _with_checkpointing(sharing: Sharing) -> str:
    return str(sharing).replace("ddp, ", "ddp with ", 1)


def _alike(tried: Sequence[_Tried], one: _Tried) -> list[_Tried]:
    """Those in which as many ranks share a pass."""
    return [other for other in tried if other.sharing.context == one.sharing.context]


def _reason(one: _Tried, tried: Sequence[_Tried], memory_bytes: int, most_rows: int) -> str:
    """Why this one: what it takes, and what others would; and the loss's chunk, if it is smaller than `most_rows`."""
    sharing, parts = one.sharing, one.memory
    takes = f"takes {parts.total / GIB:.1f} of {memory_bytes / GIB:.1f} GiB"
    if one.chunk_rows < most_rows:
        takes += f" with the loss in chunks of {one.chunk_rows} rows"
    plain = tried[0].memory.total / GIB
    replicated = min((other.memory.total for other in tried if other.sharing.name == "ddp"), default=None)
    if replicated is None:
        less = sharing.checkpointing != tried[0].sharing.checkpointing
        return f"{sharing} {takes}" + (f"; without recomputation it would take {plain:.1f} GiB" if less else "")
    only = "only adapter gradients" if sharing.context == 1 else "only adapter gradients and keys and values of passes"
    if sharing.name == "ddp" and sharing.checkpointing == tried[0].sharing.checkpointing:
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
        ways = list(allowed(remedy.work, remedy.fleet))
        if remedy.free:
            sizes = sorted({way.context for way in ways})
            ways = [replace(way, context=n) for n in sizes for way in candidates(shape, remedy.work, remedy.fleet)]
        if remedy.context is not None:
            ways = [replace(way, context=remedy.context) for way in ways]
        found = fitting_choices(ways, shape, remedy.work, remedy.fleet, memory_bytes, device)
        return f"{found[0].memory.total / GIB:.1f} GiB by {found[0].sharing}" if found else None

    return helpful(work, fleet, device, helps)
