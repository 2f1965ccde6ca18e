"""The `train` section of a run's configuration: all that one worker process needs to know. It knows no cluster.

Models are strict and frozen. A wrong value is an error that names the field; no value is converted silently.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..errors import UserError
from .deepspeed_json import Settings, conflicts
from .sections.data import DataConfig
from .sections.recipe import CheckpointConfig, EarlyStoppingConfig, EvalConfig, LoggingConfig, LoraConfig, OptimConfig
from .sections.sharing import BatchConfig, DeepSpeedConfig, Fsdp2Config
from .sections.vision import VisionConfig
from .strict import MOST, StrictModel

Precision = Literal["auto", "bf16", "fp32", "fp16"]
Quantization = Literal["none", "int4", "int8"]
ActivationCheckpointing = Literal["off", "selective", "full"]

WAITING = (
    "train.batch.shares is speed (as cluster.gpu_kind any sets it), but train.context_parallel is {}, whose ranks wait "
    "for one another in every layer; set context_parallel: 1, or shares: equal and one kind of GPU"
)


class TrainConfig(StrictModel):
    """What to train, on what, and how. A cluster run and `python -m train` read the same section."""

    model: Annotated[
        str, Field(min_length=1, description="`demo` (packaged Gemma 3 270M), a folder, or a Hugging Face id")
    ]
    adapter: Annotated[
        str | None,
        Field(
            min_length=1,
            description="go on from this adapter: a run of this head, a folder, a Hugging Face id, git+… or s3://…",
        ),
    ] = None
    data: DataConfig
    lora: LoraConfig = LoraConfig()
    batch: BatchConfig = BatchConfig()
    optim: OptimConfig = OptimConfig()
    epochs: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    max_steps: Annotated[
        int | None,
        Field(
            ge=0,
            le=MOST,
            description="stop after this many optimizer steps; 0: train nothing, only score the evaluation set",
        ),
    ] = None
    precision: Annotated[
        Precision,
        Field(description="`auto`: bf16 where the hardware gains from it, else fp32; `fp16` counts as `auto`"),
    ] = "auto"
    quantization: Annotated[
        Quantization,
        Field(description="the frozen base in 4 bits (NF4, double quantisation) or 8, by bitsandbytes"),
    ] = "none"
    strategy: Annotated[
        Literal["auto", "ddp", "fsdp2", "deepspeed"],
        Field(description="how ranks share the work; `auto`: the first of ddp and fsdp2 that fits, by the plan"),
    ] = "auto"
    context_parallel: Annotated[
        Literal["auto"] | Annotated[int, Field(gt=0, le=MOST)],
        Field(
            description="neighbouring ranks that share the tokens of each pass, for rows longer than one device holds; "
            "`auto`: the fewest with which a row fits, by the plan"
        ),
    ] = 1
    fsdp2: Fsdp2Config = Fsdp2Config()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    activation_checkpointing: Annotated[
        Literal["auto"] | ActivationCheckpointing,
        BeforeValidator(lambda value: "off" if value is False else value),  # YAML reads a bare `off` as false
        Field(
            description="`selective`: keep only matrix products and attention; `full`: keep only layer inputs; "
            "`auto`: as little as memory needs, by the plan or by probes"
        ),
    ] = "auto"
    attention: Annotated[
        Literal["auto", "flash"],
        Field(description="`auto`: the best packed attention the device has; `flash`: the CUDA kernel or an error"),
    ] = "auto"
    loss_chunk_rows: Annotated[
        Literal["auto"] | Annotated[int, Field(gt=0, le=65536)],
        Field(
            description="positions whose logits are in memory at once: it changes no result; `auto`: 256 on a CPU, "
            "2048 on a GPU or fewer where memory needs it, by the plan"
        ),
    ] = "auto"
    compile: Annotated[
        Literal["auto"] | bool,
        Field(
            description="compile the decoder layer, once for passes of any length; `auto`: on CUDA, "
            "if each rank has the base whole and in 16 or 32 bits"
        ),
    ] = "auto"
    evaluation: EvalConfig = EvalConfig()
    logging: LoggingConfig = LoggingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    early_stopping: Annotated[EarlyStoppingConfig | None, Field(description="null: train to the last step")] = None
    vision: VisionConfig = VisionConfig()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42

    @model_validator(mode="after")
    def _warmup_needs_a_schedule(self) -> TrainConfig:
        if (
            self.optim.schedule == "constant"
            # The default counts as left out: a run's folder has its configuration with every value spelled out.
            and self.optim.warmup_ratio not in (0, OptimConfig.model_fields["warmup_ratio"].default)
        ):
            raise ValueError(
                "optim.schedule `constant` has no warm-up, but optim.warmup_ratio is "
                f"{self.optim.warmup_ratio}; use `constant_with_warmup` or remove warmup_ratio"
            )
        return self

    @model_validator(mode="after")
    def _early_stopping_has_evaluations(self) -> TrainConfig:
        if self.early_stopping is None:
            return self
        if self.evaluation.every == "never":
            raise ValueError(
                "train.early_stopping needs evaluations, but train.evaluation.every is never; give a number of steps"
            )
        if problem := self.early_stopping.problem(self.data.evaluated()):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _ranks_that_share_passes_are_alike(self) -> TrainConfig:
        if self.batch.shares == "speed" and self.context_parallel != 1:
            raise ValueError(WAITING.format(self.context_parallel))
        if self.batch.micro_by_gpu and self.context_parallel != 1:
            raise ValueError(
                "train.batch.micro_by_gpu gives ranks passes of different lengths, but train.context_parallel is "
                f"{self.context_parallel}, whose ranks share each pass; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _deepspeed_has_no_quantised_base(self) -> TrainConfig:
        if self.quantization != "none" and self.strategy == "deepspeed":
            raise ValueError(
                f"train.quantization is {self.quantization}, but train.strategy deepspeed takes a base that is not "
                "quantised; use strategy fsdp2, which divides the quantised base, or ddp, which keeps it on every rank"
            )
        return self

    @model_validator(mode="after")
    def _deepspeed_agrees(self) -> TrainConfig:
        if found := conflicts(self.deepspeed_settings()):
            raise ValueError("; ".join(found))
        return self

    @model_validator(mode="after")
    def _deepspeed_is_not_compiled(self) -> TrainConfig:
        if self.compile is True and self.strategy == "deepspeed":
            raise ValueError(
                "train.compile is true with train.strategy deepspeed, which is not shown to work together; "
                "set train.compile: auto, or train.strategy: ddp or fsdp2"
            )
        return self

    def deepspeed_settings(self) -> Settings:
        """The values that the DeepSpeed engine is built from. Only strategy `deepspeed` uses them."""
        theirs = self.deepspeed.config or {}
        assert not isinstance(theirs, str)  # validation replaced the path by the file's content
        return Settings(
            stage=self.deepspeed.stage,
            offload_optimizer=self.deepspeed.offload_optimizer,
            offload_params=self.deepspeed.offload_params,
            global_batch=self.batch.global_,
            micro=self.batch.micro,
            max_grad_norm=self.optim.max_grad_norm,
            precision=self.precision,
            theirs=theirs,
        )

    def compiles_on_cuda(self, strategy: str) -> bool:
        """Whether a GPU that has a compiler compiles the layers under this strategy.

        `auto` compiles what was measured on a GPU: a base that is whole on each rank and not quantised.
        """
        return self.compile is True or (self.compile == "auto" and (self.quantization, strategy) == ("none", "ddp"))

    @property
    def recomputation(self) -> ActivationCheckpointing:
        """`activation_checkpointing` as a decision. Before ranks train, one has replaced `auto`."""
        assert self.activation_checkpointing != "auto"
        return self.activation_checkpointing

    @property
    def context_size(self) -> int:
        """`context_parallel` as a number. Before ranks train, the plan's choice has replaced `auto`."""
        assert isinstance(self.context_parallel, int)
        return self.context_parallel

    def with_shares_by_speed(self) -> TrainConfig:
        """Each rank's share of a step follows its speed. No ranks share passes."""
        return self.model_copy(update={"batch": self.batch.model_copy(update={"shares": "speed"})})

    def data_ranks(self, ranks: int) -> int:
        """Among how many the examples of a step are divided. Raises UserError if the ranks form no whole groups."""
        size = self.context_size
        if ranks % size:
            raise UserError(
                f"train.context_parallel is {size}, but {ranks} ranks do not form groups of {size}; "
                f"use a multiple of {size} ranks, or a context_parallel that divides {ranks}"
            )
        return ranks // size

    def refuse_shared_pictures(self, pictures: int) -> None:
        """Raises UserError if ranks would share passes that hold pictures. pictures: their number in the run's data"""
        if pictures and self.context_size > 1:
            raise UserError(
                f"train.context_parallel is {self.context_size}, but the data have pictures, whose tokens see one "
                "another and must lie on one rank; set train.context_parallel: 1"
            )

    def with_micro(self, rows: int, evaluation_rows: int | None = None) -> TrainConfig:
        """The same recipe with `rows` in a training pass and `evaluation_rows` in an evaluation's (None: unchanged)."""
        batch, evaluation = self.batch.model_copy(update={"micro": rows}), self.evaluation
        if evaluation_rows is not None:
            evaluation = evaluation.model_copy(update={"micro": evaluation_rows})
        return self.model_copy(update={"batch": batch, "evaluation": evaluation})

    @property
    def loss_chunk(self) -> int | None:
        """`loss_chunk_rows` as a number; None: the most that its device uses, where no plan has chosen."""
        return None if self.loss_chunk_rows == "auto" else self.loss_chunk_rows

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run. A fraction of an epoch is rounded up to whole steps."""
        steps = max(1, math.ceil(self.epochs * steps_per_epoch - 1e-9))
        return steps if self.max_steps is None else min(steps, self.max_steps)
