"""What is measured: shapes of the published sizes with random weights, in several lengths, batches and precisions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gemfleet.train.planning import SIZES, MemoryParts, ModelShape, Sharing, Workload, memory_per_rank
from gemfleet.train.planning.options import Checkpointing, Dtype, SharingName

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Case:
    """layers: so many of the size's decoder layers, None for all; `micro` rows of `length` tokens in a pass.

    reshard: under fsdp2, whether layers are let go between forward and backward
    """

    size: str
    dtype: Dtype
    length: int
    micro: int
    layers: int | None = None
    checkpointing: Checkpointing = "off"
    strategy: SharingName = "ddp"
    ranks: int = 1
    reshard: bool = True

    @property
    def needs_files(self) -> bool:
        """Whether ranks divide the weights, so that none may have them whole."""
        return self.sharing.divides_weights

    @property
    def sharing(self) -> Sharing:
        return Sharing(self.strategy, self.checkpointing, self.reshard)

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        return torch.bfloat16 if self.dtype == "bf16" else torch.float32

    @property
    def name(self) -> str:
        cut = "" if self.layers is None else f"-{self.layers}layers"
        recompute = "" if self.checkpointing == "off" else f"-{self.checkpointing}"
        kept = "" if self.reshard else "-kept"
        shared = "" if self.ranks == 1 else f"-{self.strategy}{kept}-{self.ranks}ranks"
        return f"{self.size}{cut}-{self.dtype}-{self.length}x{self.micro}{recompute}{shared}"

    def shape(self) -> ModelShape:
        """Text only, cut to `layers`."""
        whole = replace(SIZES[self.size], vision=None)
        if self.layers is None:
            return whole
        return replace(whole, layers=self.layers, sliding_layers=self.layers - self.layers // 6)

    def predicted(self) -> MemoryParts:
        """What the plan says of one rank on a CPU."""
        work = Workload(length=self.length, micro=self.micro, dtype=self.dtype)
        return memory_per_rank(self.shape(), work, self.sharing, self.ranks, device="cpu")


CASES = {
    case.name: case
    for case in (
        Case("270m", "bf16", 512, 2),
        Case("270m", "bf16", 1024, 2),
        Case("270m", "bf16", 1024, 2, checkpointing="selective"),
        Case("270m", "bf16", 1024, 2, checkpointing="full"),
        Case("270m", "fp32", 256, 1),
        Case("270m", "fp32", 1024, 1),
        Case("1b", "bf16", 256, 1),
        Case("1b", "bf16", 512, 1),
        Case("1b", "fp32", 256, 1),
        Case("4b", "bf16", 256, 1, layers=4),
        Case("270m", "bf16", 512, 2, ranks=2),
        Case("1b", "bf16", 256, 1, strategy="fsdp2", ranks=2),
        Case("1b", "bf16", 256, 1, strategy="fsdp2", ranks=2, reshard=False),
        Case("270m", "bf16", 512, 2, strategy="fsdp2", ranks=2),
        Case("270m", "bf16", 512, 2, strategy="zero1", ranks=2),
        Case("270m", "bf16", 512, 2, strategy="zero2", ranks=2),
        Case("270m", "bf16", 512, 2, strategy="zero3", ranks=2),
        Case("1b", "bf16", 256, 1, strategy="zero3", ranks=2),
    )
}
