"""What the API answers.

The shapes follow the fine-tuning job APIs that people know: `object`, `created_at`, lists with `has_more` and cursors.
Times are seconds since the epoch, sizes bytes, durations seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from gemfleet.cluster.registry.run_records import LONGEST_TAG, MOST_TAGS, TAG_KEY
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.data_view.view import DataView
from gemfleet.train.step.record import FIGURES
from pydantic import BaseModel, ConfigDict, Field

from .figures import THROUGHPUT, with_figures

Item = TypeVar("Item", bound=BaseModel)
NO_OTHER_KEYS: dict[str, Any] = {"additionalProperties": False}  # than those of the pattern
TagKey = Annotated[str, Field(pattern=TAG_KEY)]
TagValue = Annotated[str, Field(min_length=1, max_length=LONGEST_TAG)]


class ProblemDetail(BaseModel):
    """One field that is wrong."""

    field: str
    detail: str


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = "about:blank"
    title: Annotated[str, Field(description="what the status means", examples=["Not Found"])]
    status: Annotated[int, Field(examples=[404])]
    detail: Annotated[str, Field(examples=["there is no run 'demo-1'; `gemfleet runs` lists them"])]
    instance: Annotated[str, Field(description="the path that was asked for")]
    errors: Annotated[list[ProblemDetail] | None, Field(description="the fields it is about")] = None


class Listing(BaseModel, Generic[Item]):
    """One page. The next one begins after `last_id`: pass it as `after`."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None

    @classmethod
    def of(cls, items: list[Item], limit: int) -> Listing[Item]:
        """A page of at most `limit` out of items that were read with one more than that."""
        page = items[:limit]
        ids = [str(getattr(item, "id", "")) for item in page]
        return cls(
            data=page,
            has_more=len(items) > limit,
            first_id=ids[0] if ids else None,
            last_id=ids[-1] if ids else None,
        )


class Progress(BaseModel):
    """How far training is."""

    step: Annotated[int, Field(examples=[40])] = 0
    total_steps: Annotated[int, Field(examples=[120])] = 0
    epoch: Annotated[float, Field(examples=[0.67])] = 0.0
    epochs: Annotated[float, Field(examples=[2.0])] = 0.0
    fraction: Annotated[float, Field(ge=0, le=1, examples=[0.333])] = 0.0
    eta_seconds: Annotated[float | None, Field(description="null where it is not known", examples=[95.0])] = None


class Throughput(BaseModel):
    """The newest step's record, over all ranks: raw, non-pad and supervised tokens are never mixed.

    Of a run that has ended: the median of all its steps, the highest of their peak memories, and what each rank had of
    its own in the newest step.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra=with_figures(THROUGHPUT))


class Rank(BaseModel):
    """One worker process and when it was last heard of."""

    rank: int
    node: Annotated[str, Field(description="Ray's id of the node")]
    address: str
    pid: int
    heartbeat_at: float
    heartbeat_age_seconds: float


class CheckpointTotals(BaseModel):
    """All checkpoints of a run so far, those that retention removed among them."""

    saved: int
    failed: Annotated[int, Field(description="that did not reach the head; the one before them stayed")]
    bytes: int
    seconds: Annotated[float, Field(description="from the first file of each to its commit, added up")]


class TrackerView(BaseModel):
    """An experiment tracker that follows the run."""

    type: Annotated[Literal["mlflow", "wandb"], Field(examples=["mlflow"])]
    place: Annotated[str, Field(description="its server, folder or project", examples=["http://mlflow.example:5000"])]
    link: Annotated[str | None, Field(description="the page of the run there; null where it has none, or not yet")]
    problem: Annotated[str, Field(description="why it takes no records now; empty while it does")]


class RunSummary(BaseModel):
    """A run as it appears in the list."""

    id: Annotated[str, Field(examples=["demo-20260102-030405-1a2b"])]
    object: Literal["run"] = "run"
    name: str
    status: Annotated[RunState, Field(examples=["training"])]
    reason: Annotated[str, Field(description="why it is in this state, where something is to be said")] = ""
    model: Annotated[str | None, Field(examples=["demo"])] = None
    sweep: Annotated[str | None, Field(description="the id of the sweep of which it is a trial")] = None
    created_at: int
    updated_at: int
    finished_at: int | None = None
    stop_requested: bool
    tags: Annotated[dict[str, str], Field(description="by key", examples=[{"team": "search"}])] = {}
    archived: Annotated[bool, Field(description="left out of lists that do not ask for it")] = False
    progress: Progress
    loss: Annotated[
        float | None, Field(description="of the newest step; of a run that has ended the mean of all steps")
    ] = None
    eval_loss: float | None = None


class RunDetail(RunSummary):
    """All that is known of a run now."""

    waiting_for: Annotated[str | None, Field(description="what is missing, while the run waits for room")] = None
    precision: Annotated[
        str | None,
        Field(description="what is computed in; fp16 is never", examples=["bf16 where the hardware gains from it"]),
    ] = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    throughput: Throughput | None = None
    strategy: Annotated[
        dict[str, Any] | None, Field(description="the plan's choice and why, where the configuration left it open")
    ] = None
    batch_finder: Annotated[dict[str, Any] | None, Field(description="the batch finder's result, once known")] = None
    ranks: list[Rank]
    last_checkpoint: Annotated[Checkpoint | None, Field(description="the newest one that is whole")] = None
    checkpoint_totals: CheckpointTotals
    stopped_early: Annotated[
        str | None,
        Field(
            description="why a run that succeeded ended before its last step",
            examples=["stopped early at step 40 of 200: eval_loss did not fall below 1.87 of step 25 in 3 evaluations"],
        ),
    ] = None
    published: Annotated[
        str | None,
        Field(
            description="which checkpoint the result is of, and why",
            examples=["step 40 of 60: lowest evaluation loss 1.8700 (last: 2.0300 at step 60)"],
        ),
    ] = None
    trackers: list[TrackerView] = []
    restarts: int
    adapter_url: Annotated[str | None, Field(description="downloads the published adapter; null before that")] = None
    events_url: str
    metrics_url: str
    checkpoints_url: str


class Checkpoint(BaseModel):
    """A checkpoint whose files the head verified before it wrote the manifest."""

    id: Annotated[str, Field(examples=["checkpoint-40"])]
    object: Literal["run.checkpoint"] = "run.checkpoint"
    run_id: str
    step: int
    created_at: int
    bytes: int
    seconds: Annotated[float | None, Field(description="from its first file to its commit, where known")] = None
    generation: Annotated[int, Field(description="which attempt of the run wrote it")]
    eval_loss: Annotated[float | None, Field(description="measured at this very step; null where it was not")] = None
    state: Annotated[
        Literal["verified", "missing", "damaged", "remote"],
        Field(
            description="verified when it was committed, and its files still have the manifest's sizes; or not; "
            "`remote`: it is in an object store"
        ),
    ]
    files: list[CheckpointFile]
    download_url: str


class CheckpointFile(BaseModel):
    path: Annotated[str, Field(examples=["adapter_model.safetensors"])]
    bytes: int
    sha256: str


class Event(BaseModel):
    """Something that happened to a run."""

    id: Annotated[str, Field(description="grows with time, over all runs", examples=["17"])]
    object: Literal["run.event"] = "run.event"
    run_id: str
    created_at: float
    type: Annotated[str, Field(examples=["state"])]
    message: Annotated[str, Field(examples=["training"])]
    data: dict[str, Any]


class Metric(BaseModel):
    """One step's or evaluation's figures, as the ranks reported them.

    A record of an older gemfleet lacks the figures that are newer; a number that JSON cannot say is null.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra=with_figures(FIGURES))
    object: Literal["run.metric"] = "run.metric"
    kind: Annotated[str, Field(examples=["step"])]
    step: int


class MetricPage(BaseModel):
    """Figures in the order of steps. Where `has_more`, ask again with `since_step` = `next_since_step`."""

    object: Literal["list"] = "list"
    data: list[Metric]
    has_more: bool
    next_since_step: int


class FigureChart(BaseModel):
    """Where the board draws a figure. Figures with the same title share a chart."""

    title: Annotated[str, Field(examples=["Loss"])]
    line: Annotated[
        str, Field(description="its curve's name; empty where each rank or set has one", examples=["training"])
    ]
    from_zero: Annotated[bool, Field(description="whether the axis of values begins at zero")]
    compared: Annotated[bool, Field(description="whether the page that compares runs draws it too")]
    stacked: Annotated[bool, Field(description="whether the chart's curves are laid on one another, as parts of a sum")]


class FigureView(BaseModel):
    """One figure of a record, and where it is shown."""

    object: Literal["figure"] = "figure"
    name: Annotated[str, Field(description="its key in a record", examples=["tokens_per_second"])]
    kind: Annotated[str, Field(description="of the record: `step` or `eval`", examples=["step"])]
    unit: Annotated[str, Field(description="`1` for a plain number; empty for text", examples=["tokens/s"])]
    description: str
    per_rank: Annotated[bool, Field(description="whether it is a list with an entry for each rank")]
    per_set: Annotated[bool, Field(description="whether it is an object with an entry for each evaluation set")]
    over_run: Annotated[
        Literal["mean", "median", "max", "newest"] | None,
        Field(description="of which steps a run tells it once it has ended; null where a run does not tell it"),
    ]
    tile: Annotated[str | None, Field(description="its label among the newest figures of the board")]
    chart: FigureChart | None
    curve: Annotated[str | None, Field(description="its name in TensorBoard", examples=["train/tokens_per_second"])]
    gauge: Annotated[str | None, Field(description="its name for Prometheus", examples=["gemfleet_tokens_per_second"])]


class FigureList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FigureView]


class LogLine(BaseModel):
    source: Annotated[str, Field(examples=["rank-0"])]
    line: str


class LogPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[LogLine]


class RunConfiguration(BaseModel):
    """The configuration with every value spelled out, without secrets."""

    object: Literal["run.config"] = "run.config"
    run_id: str
    config: dict[str, Any]


class RunData(BaseModel):
    """What a run trains on."""

    object: Literal["run.data"] = "run.data"
    run_id: str
    view: Annotated[DataView | None, Field(description="null: the run has not prepared its data yet")]


class Submission(BaseModel):
    """A run to start: the content of a configuration file."""

    model_config = ConfigDict(extra="forbid")
    config: Annotated[
        dict[str, Any],
        Field(examples=[{"name": "demo", "train": {"model": "demo", "data": {"train": "demo"}, "max_steps": 10}}]),
    ]
    tags: Annotated[dict[TagKey, TagValue], Field(max_length=MOST_TAGS, json_schema_extra=NO_OTHER_KEYS)] = {}


class RunChange(BaseModel):
    """What people say of a run. What is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", strict=True)
    tags: Annotated[
        dict[TagKey, TagValue | None],
        Field(
            max_length=MOST_TAGS,
            description="sets tags by key; null takes one away",
            examples=[{"team": "search"}],
            json_schema_extra=NO_OTHER_KEYS,
        ),
    ] = {}
    archived: Annotated[bool | None, Field(description="only a run that has ended can be archived; null: as it is")] = (
        None
    )


class Health(BaseModel):
    status: Annotated[Literal["ok"], Field(examples=["ok"])] = "ok"
    version: str


RunDetail.model_rebuild()
Checkpoint.model_rebuild()
