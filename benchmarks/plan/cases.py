"""What is measured: shapes of the published sizes with random weights, in several lengths, batches and precisions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from gemfleet.train.planning import SIZES, MemoryParts, ModelShape, Sharing, Workload, memory_per_rank
from gemfleet.train.planning.options import Checkpointing, Dtype, Quantization, SharingName


@dataclass(frozen=True)
class Case:
    """layers: so many of the size's decoder layers, None for all; `micro` rows of `length` tokens in a pass.

    reshard: under fsdp2, whether layers are let go between forward and backward; context: ranks that share each pass
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
    quantization: Quantization = "none"
    context: int = 1

    @property
    def needs_files(self) -> bool:
        """Whether ranks divide the weights, so that none may have them whole."""
        return self.sharing.divides_weights

    @property
    def sharing(self) -> Sharing:
        return Sharing(self.strategy, self.checkpointing, self.reshard, context=self.context)

    @property
    def torch_dtype(self) -> Any:
        import torch

        return torch.bfloat16 if self.dtype == "bf16" else torch.float32

    @property
    def name(self) -> str:
        parts = [self.size, *([] if self.layers is None else [f"{self.layers}layers"]), self.dtype]
        parts += [f"{self.length}x{self.micro}", *([] if self.checkpointing == "off" else [self.checkpointing])]
        kept = [] if self.reshard else ["kept"]
        kept += [] if self.quantization == "none" else [self.quantization]
        kept += [] if self.context == 1 else [f"context{self.context}"]
        return "-".join([*parts, *([] if self.ranks == 1 else [self.strategy, *kept, f"{self.ranks}ranks"])])

    def shape(self) -> ModelShape:
        """Text only, cut to `layers`."""
        layers = self.layers or SIZES[self.size].layers
        return replace(SIZES[self.size], vision=None, layers=layers, sliding_layers=layers - layers // 6)

    def predicted(self) -> MemoryParts:
        """What the plan says of one rank on a CPU."""
        work = Workload(length=self.length, micro=self.micro, dtype=self.dtype, quantization=self.quantization)
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
        Case("1b", "bf16", 256, 1, strategy="fsdp2", ranks=2, quantization="int4"),
        Case("1b", "bf16", 256, 1, strategy="fsdp2", ranks=2, quantization="int8"),
        Case("270m", "bf16", 4096, 1, ranks=2),
        Case("270m", "bf16", 4096, 1, ranks=2, context=2),
        Case("270m", "bf16", 4096, 1, checkpointing="selective", ranks=2, context=2),
        Case("270m", "bf16", 512, 2, strategy="fsdp2", ranks=2),
        Case("270m", "bf16", 512, 2, strategy="zero1", ranks=2),
        Case("270m", "bf16", 512, 2, strategy="zero2", ranks=2),
        Case("270m", "bf16", 512, 2, strategy="zero3", ranks=2),
        Case("1b", "bf16", 256, 1, strategy="zero3", ranks=2),
    )
}
