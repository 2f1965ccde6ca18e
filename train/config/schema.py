"""The `train` section of a run's configuration: all that one worker process needs to know. It knows no cluster.

Models are strict and frozen. A wrong value is an error that names the field; no value is converted silently.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from .deepspeed_json import Settings, conflicts
from .sections.data import DataConfig
from .sections.recipe import CheckpointConfig, EarlyStoppingConfig, EvalConfig, LoggingConfig, LoraConfig, OptimConfig
from .sections.sharing import BatchConfig, DeepSpeedConfig, Fsdp2Config
from .sections.vision import VisionConfig
from .strict import MOST, StrictModel

Precision = Literal["auto", "bf16", "fp32", "fp16"]
Quantization = Literal["none", "int4", "int8"]
ActivationCheckpointing = Literal["off", "selective", "full"]


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
    compile: Annotated[
        Literal["auto"] | bool,
        Field(description="compile the decoder layer, once for passes of any length; `auto`: on CUDA"),
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
    def _quantised_bases_are_replicated(self) -> TrainConfig:
        if self.quantization != "none" and self.strategy not in ("auto", "ddp"):
            raise ValueError(
                f"train.quantization is {self.quantization}, but train.strategy {self.strategy} divides a base that is "
                "not quantised; use strategy ddp, which keeps the quantised base on every rank, or quantization none"
            )
        return self

    @model_validator(mode="after")
    def _a_trained_projector_is_in_no_engine(self) -> TrainConfig:
        if self.vision.train != "none" and self.strategy == "deepspeed":
            raise ValueError(
                f"train.vision.train is {self.vision.train}, but train.strategy deepspeed trains only the decoder; use "
                "strategy ddp or fsdp2, or vision.train none"
            )
        return self

    @model_validator(mode="after")
    def _deepspeed_agrees(self) -> TrainConfig:
        if found := conflicts(self.deepspeed_settings()):
            raise ValueError("; ".join(found))
        return self

    @model_validator(mode="after")
    def _compiled_layers_are_dense_and_whole(self) -> TrainConfig:
        if self.compile is True and (hindrance := self.hinders_compiling()):
            field, value, plain = hindrance
            raise ValueError(
                f"train.compile is true with train.{field} `{value}`, which is not shown to work together; "
                f"set train.compile: auto, or train.{field}: {plain}"
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

    def compiles_on_cuda(self) -> bool:
        """Whether a GPU that has the whole base and a compiler compiles the layers."""
        return self.compile is True or (self.compile == "auto" and self.quantization == "none")

    def hinders_compiling(self) -> tuple[str, str, str] | None:
        """A field whose value is not shown to work with compiled layers, its value, and the one that works; else None.

        A strategy of `auto` hinders nothing: if layers are compiled, the plan chooses a strategy that allows it.
        """
        fields = (("quantization", self.quantization, "none"), ("strategy", self.strategy, "ddp"))
        return next((entry for entry in fields if entry[1] not in (entry[2], "auto")), None)

    @property
    def recomputation(self) -> ActivationCheckpointing:
        """`activation_checkpointing` as a decision. Before ranks train, one has replaced `auto`."""
        assert self.activation_checkpointing != "auto"
        return self.activation_checkpointing

    def with_micro(self, rows: int, evaluation_rows: int | None = None) -> TrainConfig:
        """The same recipe with `rows` in a training pass and `evaluation_rows` in an evaluation's (None: unchanged)."""
        batch, evaluation = self.batch.model_copy(update={"micro": rows}), self.evaluation
        if evaluation_rows is not None:
            evaluation = evaluation.model_copy(update={"micro": evaluation_rows})
        return self.model_copy(update={"batch": batch, "evaluation": evaluation})

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run. A fraction of an epoch is rounded up to whole steps."""
        steps = max(1, math.ceil(self.epochs * steps_per_epoch - 1e-9))
        return steps if self.max_steps is None else min(steps, self.max_steps)
