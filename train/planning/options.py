"""The inputs of a plan: the work of one rank, how ranks share it, and how many ranks there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .counts import Targets

Quantization = Literal["none", "int8", "int4"]
Checkpointing = Literal["off", "selective", "full"]
Dtype = Literal["bf16", "fp32"]
DeviceKind = Literal["cuda", "cpu"]
Pictures = Literal["none", "kept", "anew"]
SharingName = Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"]

CHECKPOINTING: tuple[Checkpointing, ...] = ("off", "selective", "full")
DTYPE_BYTES: dict[Dtype, int] = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class Workload:
    """One rank's work in a pass, and the examples of a step over all ranks.

    length:         tokens of a packed row; micro: rows in one pass
    example_tokens: mean tokens of an example; None: one example fills a row, the worst case
    supervised:     share of tokens that the loss scores
    global_batch:   examples of one optimizer step, over all ranks
    compiled:       the strategies under which layers are compiled
    chunk_rows:     positions whose logits exist at once; None: the plan chooses
    fused:          whether fused kernels compute norms and gating in layers that are not compiled
    pictures:       whether rows hold pictures: their features are kept, or the vision tower makes them in each step
    by_speed:       whether a rank's share of a step follows its speed; then no ranks share a pass
    projector_trained: whether the projector of pictures is trained
    """

    length: int = 1024
    micro: int = 1
    example_tokens: int | None = None
    supervised: float = 1.0
    global_batch: int = 32
    lora_rank: int = 16
    lora_targets: Targets = "all-linear"
    lora_dropout: float = 0.0
    dtype: Dtype = "bf16"
    quantization: Quantization = "none"
    compiled: tuple[SharingName, ...] = ()
    fused: bool = False
    chunk_rows: int | None = None
    pictures: Pictures = "none"
    by_speed: bool = False
    projector_trained: bool = False

    @property
    def document(self) -> int:
        """Tokens of one document inside a row."""
        return self.length if self.example_tokens is None else min(self.example_tokens, self.length)

    @property
    def tokens(self) -> int:
        """Tokens in one pass of a rank."""
        return self.length * self.micro

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step, over all ranks."""
        return self.global_batch * self.document

    @property
    def bytes_per_value(self) -> int:
        """Bytes of a weight or activation in the computation's dtype."""
        return DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Sharing:
    """A strategy with its options. The name decides which parts of the state are divided.

    reshard: fsdp2 only; whether a layer's gathered weights are freed between forward and backward
    context: neighbouring ranks that share the tokens of each pass; 1: each computes its own
    """

    name: SharingName
    checkpointing: Checkpointing = "off"
    reshard: bool = True
    context: int = 1

    @property
    def divides_weights(self) -> bool:
        return self.name in ("fsdp2", "zero3")

    @property
    def divides_gradients(self) -> bool:
        return self.name in ("fsdp2", "zero2", "zero3")

    @property
    def divides_optimizer(self) -> bool:
        return self.name != "ddp"

    def __str__(self) -> str:
        kept = "" if self.reshard or self.name != "fsdp2" else ", kept gathered"
        recompute = "" if self.checkpointing == "off" else f", {self.checkpointing} activation checkpointing"
        context = "" if self.context == 1 else f", {self.context} ranks for each pass"
        return f"{self.name}{kept}{recompute}{context}"


@dataclass(frozen=True)
class Fleet:
    """ranks: GPUs in all; ranks_per_node and network_gbit_s (of a node) decide how much crosses the network"""

    ranks: int = 1
    ranks_per_node: int = 8
    network_gbit_s: float = 100.0
