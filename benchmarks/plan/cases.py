"""What is measured: shapes of the published sizes with random weights, in several lengths, batches and precisions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gemfleet.train.planning import SIZES, MemoryParts, ModelShape, Sharing, Workload, memory_per_rank
from gemfleet.train.planning.options import Checkpointing, Dtype


@dataclass(frozen=True)
class Case:
    """layers: so many of the size's decoder layers, None for all; `micro` rows of `length` tokens in a pass."""

    size: str
    dtype: Dtype
    length: int
    micro: int
    layers: int | None = None
    checkpointing: Checkpointing = "off"

    @property
    def name(self) -> str:
        cut = "" if self.layers is None else f"-{self.layers}layers"
        recompute = "" if self.checkpointing == "off" else f"-{self.checkpointing}"
        return f"{self.size}{cut}-{self.dtype}-{self.length}x{self.micro}{recompute}"

    def shape(self) -> ModelShape:
        """Text only, cut to `layers`."""
        whole = replace(SIZES[self.size], vision=None)
        if self.layers is None:
            return whole
        return replace(whole, layers=self.layers, sliding_layers=self.layers - self.layers // 6)

    def predicted(self) -> MemoryParts:
        """What the plan says of one rank on a CPU."""
        work = Workload(length=self.length, micro=self.micro, dtype=self.dtype)
        return memory_per_rank(self.shape(), work, Sharing("ddp", self.checkpointing), ranks=1, device="cpu")


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
    )
}
