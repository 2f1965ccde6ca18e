"""The parts of the `train` section that decide how memory and ranks carry the recipe out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from ..deepspeed_json import read_deepspeed_json
from ..strict import MOST, Size, StrictModel, parse_bytes

# Positions whose logits exist at once, by the kind of device: what `train.loss_chunk_rows: auto` chooses from. A row of
# 262,144 logits in bf16 and fp32 takes 1.5 MiB. With fewer rows, a step reads the head's weight more often. On a CPU
# they exist for `LOSS_BLOCK_WORDS` of the vocabulary at once, the fastest of 512 to 4,096 with 1 MiB of cache a core.
LOSS_CHUNK_ROWS: Mapping[Literal["cpu", "cuda"], tuple[int, ...]] = {
    "cpu": (256,),
    "cuda": (2048, 1024, 512, 256, 128, 64),
}
LOSS_BLOCK_WORDS = 2048


class BatchConfig(StrictModel):
    """The batch. `global` is part of the recipe; `micro` only decides how much of it is in memory at once."""

    global_: Annotated[
        int, Field(gt=0, le=MOST, alias="global", description="examples in one optimizer step, over all ranks")
    ] = 32
    micro: Annotated[
        Literal["auto", "probe"] | Annotated[int, Field(gt=0, le=MOST)],
        Field(
            description="packed rows of max_length one rank holds in one pass; `probe`: trials before training find "
            "the fastest that fits; `auto`: `probe` on CUDA if the run is long enough to gain by it, else the plan's"
        ),
    ] = "auto"
    micro_by_gpu: Annotated[
        dict[str, Annotated[int, Field(gt=0, le=MOST)]],
        Field(
            description="rows in place of `micro` for GPUs of these names, as nvidia-smi gives them; with "
            "cluster.gpu_kind `any` the plan or probes fill it in"
        ),
    ] = Field(default_factory=dict)
    shares: Annotated[
        Literal["equal", "speed"],
        Field(
            description="how a step's tokens are divided among ranks: equally, or by the measured speed of each rank, "
            "as cluster.gpu_kind `any` asks for; it changes no result"
        ),
    ] = "equal"
    device_memory_limit: Annotated[
        Size | None,
        Field(description="memory one rank may use: bytes, or a number with KiB, MiB or GiB; null: all there is"),
    ] = None
    memory_margin: Annotated[float, Field(ge=0, lt=1, description="share of the memory that probes keep free")] = 0.08
    probe_timeout_s: Annotated[
        float, Field(gt=0, description="a trial by probes whose ranks do not answer for this long has failed")
    ] = 120.0

    @property
    def memory_limit_bytes(self) -> int | None:
        return None if self.device_memory_limit is None else parse_bytes(self.device_memory_limit)

    def for_gpu(self, name: str) -> BatchConfig:
        """This section for a rank on a device of that name."""
        return self.model_copy(update={"micro": self.micro_by_gpu.get(name, self.micro)})

    def halved(self) -> BatchConfig:
        """The section with half the rows in a pass on every kind of device, at least one."""
        fewer = {name: max(1, rows // 2) for name, rows in self.micro_by_gpu.items()}
        return self.model_copy(update={"micro": max(1, self.rows_per_pass // 2), "micro_by_gpu": fewer})

    @property
    def most_rows(self) -> int:
        """The most rows in a pass on any kind of device."""
        return max(self.rows_per_pass, *self.micro_by_gpu.values(), 1)

    @property
    def rows_per_pass(self) -> int:
        """`micro` as a number. Before ranks train, a number has replaced `auto` and `probe`."""
        assert isinstance(self.micro, int)
        return self.micro


class Fsdp2Config(StrictModel):
    """`strategy: fsdp2`: ranks divide every parameter among them and gather it layer by layer for use."""

    reshard_after_forward: Annotated[
        Literal["auto"] | bool,
        Field(
            description="free a layer after its forward and gather it again for backward: less memory, slower; "
            "`auto`: if the plan says that memory needs it"
        ),
    ] = "auto"
    cpu_offload: Annotated[bool, Field(description="keep shards, gradients and AdamW in host memory")] = False

    @property
    def reshards(self) -> bool:
        """Whether layers are freed after forward. An `auto` that no plan has settled takes less memory: True."""
        return self.reshard_after_forward is not False


class DeepSpeedConfig(StrictModel):
    """`strategy: deepspeed`: ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054)."""

    stage: Annotated[
        Literal[1, 2, 3],
        Field(description="1 divides the optimizer's state among ranks, 2 the gradients too, 3 all parameters too"),
    ] = 2
    offload_optimizer: Annotated[bool, Field(description="keep AdamW and its state in host memory")] = False
    offload_params: Annotated[bool, Field(description="keep divided parameters in host memory; stage 3 only")] = False
    config: Annotated[
        str | dict[str, Any] | None,
        Field(description="a DeepSpeed JSON file or its content, for what gemfleet does not set itself"),
    ] = None

    @field_validator("config", mode="before")
    @classmethod
    def _file_becomes_content(cls, value: Any, info: ValidationInfo) -> Any:
        """Reads the file now, on the machine that has it; ranks on other nodes get its content."""
        beside = (info.context or {}).get("folder")
        return read_deepspeed_json(value, beside) if isinstance(value, str) else value
