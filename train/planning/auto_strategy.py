"""Settles what a configuration leaves at `auto`: `strategy`, `activation_checkpointing`, `reshard_after_forward`.

The plan decides by the devices of the ranks, before they train and again in each launch. A checkpoint resumes under
any strategy, so a run that goes on elsewhere gets what fits there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

from ..config.home import cpp_compiler
from ..config.schema import TrainConfig
from ..errors import UserError
from . import SIZES, Choice, Fleet, ModelShape, Sharing, Workload
from .choice import candidates, choose_among, fitting_choices, in_contexts
from .counts import Targets, projections
from .memory import CPU_PROCESS, memory_per_rank
from .options import CHECKPOINTING, Checkpointing, DeviceKind, SharingName

GIB = 2**30
Changes = tuple[tuple[str, Any], ...]
COMPILED: tuple[SharingName, ...] = ("ddp", "fsdp2")


@dataclass(frozen=True)
class RankDevices:
    """What the ranks of a run have. memory_bytes: the least that one rank has; dtype: of the computation

    gpu: the driver's name of one GPU; empty for CPUs, or if it is not known
    """

    ranks: int
    memory_bytes: int
    kind: DeviceKind
    dtype: Literal["bf16", "fp32"]
    gpu: str = ""

    @classmethod
    def of(
        cls, ranks: int, limit_bytes: int, kind: DeviceKind, dtype: Literal["bf16", "fp32"], gpu: str = ""
    ) -> RankDevices:
        """limit_bytes: all that a rank may use; on a CPU that includes its process."""
        return cls(ranks, limit_bytes - (CPU_PROCESS if kind == "cpu" else 0), kind, dtype, gpu)

    @property
    def fleet(self) -> Fleet:
        return Fleet(self.ranks)


@dataclass(frozen=True)
class Option:
    """One way to share the work. changes: fields of the `train` section with their values, for `model_copy`"""

    choice: Choice
    changes: Changes

    @property
    def name(self) -> str:
        """The name for people: `fsdp2, selective activation checkpointing`."""
        return str(self.choice.sharing)


@dataclass(frozen=True)
class Settled:
    """The plan's choice. config: only its micro-batch is still open

    sentence: what was chosen and why, for people; facts: the same for the API
    options: all that fit, the chosen one first; sharing, shape, devices: what the search for a micro-batch needs
    kinds: the devices of each kind, if ranks have several; pictures: whether the data hold some, as far as is known
    """

    config: TrainConfig
    sentence: str
    facts: Mapping[str, Any]
    options: tuple[Option, ...]
    sharing: Sharing
    shape: ModelShape
    devices: RankDevices
    kinds: tuple[RankDevices, ...] = ()
    pictures: bool = False


def is_open(config: TrainConfig) -> bool:
    """Whether the configuration leaves the strategy, one of its options, or activation checkpointing to the plan."""
    gathered = config.strategy == "fsdp2" and config.fsdp2.reshard_after_forward == "auto"
    return "auto" in (config.strategy, config.activation_checkpointing, config.context_parallel) or gathered


def needs_devices(config: TrainConfig) -> bool:
    """Whether the configuration leaves anything open that depends on the ranks' devices."""
    return is_open(config) or isinstance(config.batch.micro, str) or config.loss_chunk_rows == "auto"


def settled_blindly(config: TrainConfig) -> TrainConfig:
    """The simplest choice, for devices of unknown memory: only training or probes can tell what fits there."""
    found: dict[str, Any] = {"strategy": "ddp"} if config.strategy == "auto" else {}
    found |= {"activation_checkpointing": "off"} if config.activation_checkpointing == "auto" else {}
    found |= {"context_parallel": 1} if config.context_parallel == "auto" else {}
    return config.model_copy(update=found)


def fitting_strategies(
    config: TrainConfig, shape: ModelShape, devices: RankDevices, pictures: bool = False
) -> list[Option]:
    """All ways to share the work that fit on these devices and that the configuration allows, the best one first.

    Empty if nothing fits. A value that a person set (activation checkpointing, reshard_after_forward) does not change.
    All have the same context parallelism, the least with which any fits. pictures: whether rows hold some
    """
    work = workload_of(config, devices.dtype, devices.kind, pictures)
    sharings = allowed_sharings(config, shape, work, devices.fleet)
    found = fitting_choices(sharings, shape, work, devices.fleet, devices.memory_bytes, devices.kind)
    least = [choice for choice in found if choice.sharing.context == found[0].sharing.context]
    return [Option(choice, changes_for(config, choice)) for choice in least]


def settle_strategy(config: TrainConfig, shape: ModelShape, devices: RankDevices, pictures: bool = False) -> Settled:
    """Settles everything but the micro-batch. Raises UserError if the strategy is open and none fits.

    pictures: whether rows hold some
    """
    if config.context_parallel != "auto":
        config.data_ranks(devices.ranks)  # refuses what does not divide the ranks
    work = workload_of(config, devices.dtype, devices.kind, pictures)
    allowed = partial(allowed_sharings, config, shape)
    choice = choose_among(allowed, shape, work, devices.fleet, devices.memory_bytes, devices.kind)
    if config.strategy == "auto" and not choice.fits and config.max_steps != 0:
        raise UserError(
            f"train.strategy is auto, but {choice.reason}; or name a strategy, which is tried whatever the plan says"
        )
    options = fitting_strategies(config, shape, devices, pictures)
    ranks = f"{devices.ranks} rank" + ("" if devices.ranks == 1 else "s")
    return Settled(
        config.model_copy(update=dict(changes_for(config, choice))),
        f"strategy for {ranks}: {choice.reason}{_nothing_recomputed(config, choice)}",
        facts_of(config, choice, devices, options),
        tuple(options),
        choice.sharing,
        shape,
        devices,
        pictures=pictures,
    )


def _nothing_recomputed(config: TrainConfig, choice: Choice) -> str:
    """The end of the sentence, if nothing is recomputed. Otherwise the choice's own reason says it."""
    settled_so = config.activation_checkpointing == "auto" and choice.sharing.checkpointing == "off"
    return "; activation checkpointing is off" if settled_so else ""


def needs(config: TrainConfig, shape: ModelShape, ranks: int, kind: DeviceKind) -> str:
    """What each way to share the work takes of one rank's device, in words, for a place that knows no device yet."""
    work = workload_of(config, "fp32" if config.precision == "fp32" else "bf16", kind)
    taken = [
        f"{sharing} {memory_per_rank(shape, work, sharing, ranks, kind).total / GIB:.2f}"
        for sharing in allowed_sharings(config, shape, work, Fleet(ranks))
    ]
    return f"{config.strategy}: the first that fits a rank's device, of (GiB) " + "; ".join(taken)


def facts_of(config: TrainConfig, choice: Choice, devices: RankDevices, options: Sequence[Option]) -> dict[str, Any]:
    """The choice for the API. Memory is that of one rank, in bytes."""
    sharing = choice.sharing
    return {
        "asked": config.strategy,
        "strategy": sharing.name,
        "activation_checkpointing": sharing.checkpointing,
        "reshard_after_forward": sharing.reshard if sharing.name == "fsdp2" else None,
        "loss_chunk_rows": choice.chunk_rows,
        "context_parallel": sharing.context,
        "fits": choice.fits,
        "reason": choice.reason,
        "fitting": [option.name for option in options],
        "predicted_memory_bytes": {**asdict(choice.memory), "total": choice.memory.total},
        **asdict(devices),
    }


def allowed_sharings(config: TrainConfig, shape: ModelShape, work: Workload, fleet: Fleet) -> list[Sharing]:
    """The plan's candidates that this configuration allows. Those of the least context parallelism come first."""
    return in_contexts(_allowed_alone(config, shape, work, fleet), config.context_parallel, work, fleet)


def _allowed_alone(config: TrainConfig, shape: ModelShape, work: Workload, fleet: Fleet) -> list[Sharing]:
    """Those in which no ranks share passes."""
    chosen = None if config.activation_checkpointing == "auto" else config.activation_checkpointing
    if config.strategy == "auto":
        found = candidates(shape, work, fleet, chosen)
    else:
        found = _ways_of(config, CHECKPOINTING if chosen is None else (chosen,), work.quantization != "none")
    reshard = config.fsdp2.reshard_after_forward
    return [sharing for sharing in found if sharing.name != "fsdp2" or reshard in ("auto", sharing.reshard)]


def _ways_of(config: TrainConfig, modes: Sequence[Checkpointing], quantised: bool) -> list[Sharing]:
    """The candidates of the strategy that the configuration names, with the least recomputation first.

    None for a quantised base that it cannot divide: a remedy may ask for one.
    """
    if quantised and config.strategy == "deepspeed":
        return []
    if config.strategy == "fsdp2":
        return [Sharing("fsdp2", mode, kept) for mode in modes for kept in (False, True)]
    if config.strategy == "deepspeed":
        names: tuple[SharingName, ...] = ("zero1", "zero2", "zero3")
        return [Sharing(names[config.deepspeed.stage - 1], mode) for mode in modes]
    return [Sharing("ddp", mode) for mode in modes]


def changes_for(config: TrainConfig, choice: Choice) -> Changes:
    """Every field that this choice sets, so that it also replaces the result of another choice."""
    sharing = choice.sharing
    found: Changes = ()
    if config.loss_chunk_rows == "auto":
        found = (("loss_chunk_rows", choice.chunk_rows),)
    if config.strategy == "auto":
        found = (*found, ("strategy", sharing.name))
    if "auto" in (config.strategy, config.activation_checkpointing):
        found = (*found, ("activation_checkpointing", sharing.checkpointing))
    if config.context_parallel == "auto":
        found = (*found, ("context_parallel", sharing.context))
    if sharing.name == "fsdp2":
        fsdp2 = config.fsdp2.model_copy(update={"reshard_after_forward": sharing.reshard})
        found = (*found, ("fsdp2", fsdp2))
    return found


def workload_of(
    config: TrainConfig, dtype: Literal["bf16", "fp32"], kind: DeviceKind = "cuda", pictures: bool = False
) -> Workload:
    """One rank's work by a configuration. All tokens are supervised: the worst case.

    pictures: whether rows hold some
    """
    return Workload(
        length=config.data.max_length,
        micro=config.batch.micro
        if isinstance(config.batch.micro, int)
        else 1,  # the search begins with what fits with one row
        global_batch=config.batch.global_,
        lora_rank=config.lora.r,
        lora_targets=_targets(config.lora.target_modules),
        lora_dropout=config.lora.dropout,
        dtype=dtype,
        quantization=config.quantization,
        chunk_rows=config.loss_chunk,
        compiled=tuple(name for name in COMPILED if kind == "cuda" and config.compiles_on_cuda(name)),
        fused=liger_is_installed() if kind == "cuda" else dtype == "bf16" and cpp_compiler() is not None,
        projector_trained=config.vision.train == "projector",
        pictures="none" if not pictures else "anew" if config.vision.cache == "off" else "kept",
        by_speed=config.batch.shares == "speed",
    )


def liger_is_installed() -> bool:
    """Whether this machine has Liger. It stands for the ranks' nodes: the doctor tells if packages differ."""
    return all(find_spec(package) is not None for package in ("liger_kernel", "triton"))


def _targets(modules: Literal["all-linear"] | list[str]) -> Targets:
    """The adapters' targets, as the plan counts them. Other names, such as full ones, count as all: the upper bound."""
    known = projections(SIZES["270m"])  # every size has the same names
    return modules if isinstance(modules, list) and all(name in known for name in modules) else "all-linear"
