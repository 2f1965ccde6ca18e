"""The `train` section of a run's configuration: all that one worker process needs to know. It knows no cluster.

Models are strict and frozen. A wrong value is an error that names the field; no value is converted silently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from .data_section import DataConfig
from .deepspeed_json import Settings, conflicts, read_deepspeed_json
from .strict import MOST, Size, StrictModel, parse_bytes

Precision = Literal["auto", "bf16", "fp32", "fp16"]
Quantization = Literal["none", "int4", "int8"]
ActivationCheckpointing = Literal["off", "selective", "full"]
Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]
Interval = Literal["epoch", "never"] | Annotated[int, Field(gt=0)]


class LoraConfig(StrictModel):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), which peft places."""

    r: Annotated[int, Field(gt=0, le=MOST, description="rank of the update matrices")] = 16
    alpha: Annotated[float, Field(gt=0, description="the update is scaled by alpha / r")] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout on the adapter's input")] = 0.0
    target_modules: Annotated[
        Literal["all-linear"] | list[str],
        Field(
            description="`all-linear`: every linear layer of the language model, without lm_head and the vision tower; "
            "or a list of module names, never lm_head"
        ),
    ] = "all-linear"

    @field_validator("target_modules")
    @classmethod
    def _names_layers(cls, value: str | list[str]) -> str | list[str]:
        names = [value] if isinstance(value, str) else value
        if not names or not all(names):
            raise ValueError(
                f"found {value}, which names no module; give `all-linear` or a list as in [q_proj, v_proj]"
            )
        if any(name.rpartition(".")[2] == "lm_head" for name in names):
            raise ValueError("found `lm_head`, whose weight is the embedding's too and cannot be merged; leave it out")
        return value


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

    @property
    def rows_per_pass(self) -> int:
        """`micro` as a number. Before ranks train, a number has replaced `auto` and `probe`."""
        assert isinstance(self.micro, int)
        return self.micro


class OptimConfig(StrictModel):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) and its schedule."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    schedule: Schedule = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, le=1, description="share of all steps spent warming up")] = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[float, Field(ge=0, description="clip the global gradient norm here; 0: do not clip")] = 1.0

    @field_validator("betas")
    @classmethod
    def _are_decays(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError(f"found {list(value)}; give two numbers of at least 0 and less than 1, as in [0.9, 0.999]")
        return value


class CheckpointConfig(StrictModel):
    """When a rank saves the full state. It also saves at the end of training and when it is stopped."""

    every: Annotated[Interval, Field(description="`epoch`, `never`, or a number of optimizer steps")] = "epoch"
    best: Annotated[
        bool,
        Field(description="save too after an evaluation that is the best so far; not where `every` is `never`"),
    ] = True


class EvalConfig(StrictModel):
    """When ranks score the evaluation set. They also score it before the first step and after the last one."""

    every: Annotated[Interval, Field(description="`epoch`, `never`, or a number of optimizer steps")] = "epoch"
    micro: Annotated[
        int | None, Field(gt=0, le=MOST, description="packed rows one rank scores in one pass; null: as batch.micro")
    ] = None


class EarlyStoppingConfig(StrictModel):
    """When training ends before its last step: once the evaluation loss does not fall any more."""

    patience: Annotated[int, Field(gt=0, le=MOST, description="evaluations in a row without a lower loss that end it")]
    min_delta: Annotated[
        float, Field(ge=0, description="a loss counts as lower if it is by more than this below the lowest so far")
    ] = 0.0
    metric: Annotated[
        str,
        Field(pattern=r"^eval_(.+_)?loss$", description="`eval_loss`, or `eval_NAME_loss` of one of several sets"),
    ] = "eval_loss"

    def problem(self, sets: Sequence[str]) -> str | None:
        """Why the loss cannot be known with these evaluation sets, in a sentence with the remedy; None if it can."""
        if not sets:
            return "train.early_stopping needs an evaluation set; give train.data.eval, or an eval_fraction above 0"
        if self.metric in (names := loss_names(sets)):
            return None
        return f"train.early_stopping.metric is {self.metric}, which no evaluation measures; give {' or '.join(names)}"


def loss_names(sets: Sequence[str]) -> list[str]:
    """What evaluations of these sets measure: `eval_loss`, and of each of several sets `eval_NAME_loss`."""
    return ["eval_loss", *(f"eval_{name}_loss" for name in sets if len(sets) > 1)]


class LoggingConfig(StrictModel):
    """When the log gets a line with the mean loss since the last such line. Each step's own loss is always recorded."""

    every: Annotated[Interval, Field(description="`epoch`, `never`, or a number of optimizer steps")] = "epoch"


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
