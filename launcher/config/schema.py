"""A run's configuration: what to train (`train`), where (`cluster`), what to publish (`output`) and to show (`api`).

Models are strict and frozen, as in `gemfleet.train.config.schema`. `load.py` reads files and explains mistakes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from gemfleet.launcher.sources.address import BRANCH_PATTERN
from gemfleet.train.config.schema import WAITING, TrainConfig
from gemfleet.train.config.strict import StrictModel
from pydantic import Field, field_validator, model_validator

from .cluster import ANY_KIND, ClusterConfig, WorkerRange
from .reports import NotifyConfig, TrackerConfig

PublishedStep = Literal["best", "last"] | Annotated[int, Field(gt=0)]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class PredictConfig(StrictModel):
    """Answers that the model generates on the evaluation set after training.

    A text that has no prompt is split: after `answer_after` if it holds that, else in the middle.
    """

    batch: Annotated[int, Field(ge=1, description="prompts one rank continues at once")] = 4
    max_new_tokens: Annotated[int, Field(ge=1, description="tokens generated for a prompt at most")] = 128
    limit: Annotated[int | None, Field(ge=1, description="predict only the first N examples; null: all")] = None
    answer_after: Annotated[
        str, Field(min_length=1, description="in a text, what follows the last of these is the answer")
    ] = "<start_of_turn>model\n"


class DeliverConfig(StrictModel):
    """Where a copy of the result goes."""

    type: Annotated[
        Literal["git", "hub", "s3", "gs"],
        Field(description="push a commit with LFS, or upload to Hugging Face or to an object store"),
    ]
    repository: Annotated[
        str,
        Field(min_length=1, description="address of the repository, `owner/name` of the hub, or s3://bucket/folder"),
    ]
    branch: Annotated[
        str | None,
        Field(
            pattern=BRANCH_PATTERN,
            description="branch to push to, null: main; in an object store the folder below the address",
        ),
    ] = None


Format = Literal["adapter", "merged", "gguf"]
FORMATS: tuple[Format, ...] = ("adapter", "merged", "gguf")


class OutputConfig(StrictModel):
    """What the run publishes at its end, and where."""

    checkpoint: Annotated[
        PublishedStep,
        Field(
            description="`best`: of the lowest evaluation loss, the last where nothing is evaluated; `last`; or a "
            "number of optimizer steps"
        ),
    ] = "best"
    formats: Annotated[
        tuple[Format, ...],
        Field(
            strict=False,
            description="`adapter` is always written; `merged`: the base with the adapter added, to `merged/`; `gguf`: "
            "that as a GGUF file, by llama.cpp's converter",
        ),
    ] = FORMATS[:1]
    compare: Annotated[
        int,
        Field(ge=0, description="prompts by which the published forms are compared with the training loop; 0: none"),
    ] = 4
    tensorboard: Annotated[bool, Field(description="publish the TensorBoard files with the result")] = True
    padding_side: Annotated[
        Literal["left", "right"] | None, Field(description="what the published tokenizer says; null: as the model's")
    ] = None
    deliver: Annotated[DeliverConfig | None, Field(description="null: the result stays in the run's folder")] = None

    @field_validator("formats")
    @classmethod
    def _with_the_adapter(cls, value: tuple[Format, ...]) -> tuple[Format, ...]:
        return tuple(name for name in FORMATS if name == "adapter" or name in value)


class ApiConfig(StrictModel):
    """The status API and dashboard, which run in the cluster beside the runs. The first run on a head starts them."""

    enabled: Annotated[bool, Field(description="start it with the run, if it does not run yet")] = True
    host: Annotated[
        str,
        Field(min_length=1, description="address of the head to listen at; any but a loopback one asks for a token"),
    ] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen at; any free one where it is taken")] = 8266
    allowed_hosts: Annotated[
        tuple[str, ...], Field(strict=False, description="further names that requests may use for the head")
    ] = ()
    data_roots: Annotated[
        tuple[str, ...],
        Field(strict=False, description="folders of the head below which submitted configurations may name paths"),
    ] = ()
    allowed_sources: Annotated[
        tuple[str, ...],
        Field(
            strict=False,
            description="addresses below which they may name models and data, as git+https://HOST/GROUP or s3://BUCKET",
        ),
    ] = ()
    allowed_deliveries: Annotated[
        tuple[str, ...],
        Field(
            strict=False,
            description="addresses below which their results and checkpoints may go; hub:OWNER for Hugging Face",
        ),
    ] = ()
    allowed_reports: Annotated[
        tuple[str, ...],
        Field(
            strict=False,
            description="addresses below which their trackers and webhooks may be; wandb:ENTITY/PROJECT for W&B",
        ),
    ] = ()


class LaunchConfig(StrictModel):
    """One configuration file."""

    name: Annotated[
        str | None,
        Field(
            pattern=NAME_PATTERN,
            description="begins the run's id; letters, digits, `.`, `_` and `-`, at most 64; null: the file's name",
        ),
    ] = None
    train: TrainConfig
    cluster: ClusterConfig = ClusterConfig()
    output: OutputConfig = OutputConfig()
    predict: Annotated[PredictConfig | None, Field(description="null: no answers are generated")] = None
    trackers: Annotated[
        tuple[TrackerConfig, ...], Field(strict=False, description="experiment trackers that follow the run")
    ] = ()
    notify: Annotated[
        tuple[NotifyConfig, ...],
        Field(strict=False, repr=False, description="webhooks that are told how the run ends"),
    ] = ()
    api: ApiConfig = ApiConfig()

    @property
    def ranks_for_each_pass(self) -> int:
        """How many ranks form a group, before the plan has settled what is `auto`."""
        asked = self.train.context_parallel
        return asked if isinstance(asked, int) else 1

    @model_validator(mode="after")
    def _ranks_form_whole_groups_of_one_kind(self) -> LaunchConfig:
        size, workers = self.train.context_parallel, self.cluster.workers
        if size != 1 and self.cluster.gpu_kind == ANY_KIND:
            raise ValueError(WAITING.format(size))
        if size == "auto" and isinstance(workers, WorkerRange):
            raise ValueError(
                "train.context_parallel is auto, which is settled for one number of ranks, but cluster.workers is a "
                "range; give a number for one of them"
            )
        fewest = workers.min if isinstance(workers, WorkerRange) else workers
        if isinstance(size, int) and isinstance(fewest, int) and fewest % size:
            raise ValueError(
                f"train.context_parallel is {size}, but cluster.workers is {fewest}, which does not form groups of "
                f"{size}; give a multiple of {size} workers, or a context_parallel that divides {fewest}"
            )
        return self

    @model_validator(mode="after")
    def _the_published_checkpoint_stays(self) -> LaunchConfig:
        step, keep = self.output.checkpoint, self.cluster.keep_checkpoints
        if isinstance(step, int) and keep is not None:
            raise ValueError(
                f"output.checkpoint is {step}, but cluster.keep_checkpoints is {keep}, which may remove that "
                "checkpoint; leave keep_checkpoints out, or publish best or last"
            )
        return self
