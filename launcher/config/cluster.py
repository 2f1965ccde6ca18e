"""The section `cluster` of a configuration: where ranks run, how many there are, and what is done about failures."""

from __future__ import annotations

from typing import Annotated, Literal

from gemfleet.cluster.checkpoint_store.location import is_storage
from gemfleet.train.config.strict import StrictModel
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

ANY_KIND = "any"


class WatchdogConfig(StrictModel):
    """Seconds that a rank may go without progress. Then its stacks are saved and the ranks restart. null: no limit."""

    start_s: Annotated[float | None, Field(gt=0, description="loading the model and the checkpoint")] = 3600.0
    step_s: Annotated[float | None, Field(gt=0, description="one optimizer step")] = 900.0
    evaluate_s: Annotated[float | None, Field(gt=0, description="scoring the evaluation set once")] = 3600.0
    save_s: Annotated[
        float | None,
        Field(gt=0, description="copying the state; and waiting for the copy before"),
    ] = 900.0

    def limits(self) -> dict[str, float]:
        """The limit of each phase, in seconds, by the loop's name for the phase."""
        limits = {"start": self.start_s, "step": self.step_s, "evaluate": self.evaluate_s, "save": self.save_s}
        return {phase: seconds for phase, seconds in limits.items() if seconds is not None}


class WorkerRange(StrictModel):
    """The range of an elastic run, which uses as many ranks as there is room for. The global batch stays the same."""

    min: Annotated[int, Field(ge=1, description="fewest ranks; with fewer places the run waits")] = 1
    max: Annotated[int, Field(ge=1, description="most ranks; when nodes join, the run saves and goes on with more")]

    @model_validator(mode="after")
    def _ordered(self) -> WorkerRange:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max {self.max}; give min no larger than max")
        return self


class ClusterConfig(StrictModel):
    """Which Ray cluster to use, how many ranks, and what to do when the cluster fails or is full."""

    address: Annotated[
        str,
        Field(
            min_length=1,
            description="`auto` (this machine's cluster, else a local one), `local`, or HOST:PORT of the head",
        ),
    ] = "auto"
    workers: Annotated[
        Annotated[Literal["auto"] | Annotated[int, Field(ge=1)], Tag("number")] | Annotated[WorkerRange, Tag("range")],
        Discriminator(lambda value: "range" if isinstance(value, (dict, WorkerRange)) else "number"),
        Field(
            description="ranks; `auto`: one for every GPU, or one for every node where there is no GPU; "
            "`{min: 2, max: 8}`: as many as there is room for"
        ),
    ] = "auto"
    cpus_per_worker: Annotated[
        Literal["auto"] | Annotated[float, Field(gt=0)],
        Field(description="cores reserved for one rank; `auto`: 1"),
    ] = "auto"
    gpus_per_worker: Annotated[
        Literal["auto", 0, 1], Field(description="GPUs of one rank; `auto`: 1 where the cluster has any")
    ] = "auto"
    gpu_kind: Annotated[
        str | None,
        Field(
            min_length=1,
            description="use only nodes whose GPUs Ray calls so, for example `H100`; `any`: all kinds together, each "
            "rank with a share by its speed; null: where there are several kinds, the one that is fastest together",
        ),
    ] = None
    wait_for_resources_s: Annotated[
        float,
        Field(
            ge=0,
            description="seconds to wait until the cluster has room for all ranks; behind other runs there is no limit",
        ),
    ] = 300.0
    max_failures: Annotated[
        int, Field(ge=0, description="restarts from the last checkpoint after a rank or a node was lost")
    ] = 3
    placement: Annotated[
        Literal["PACK", "SPREAD"],
        Field(description="`PACK`: fill one node first; `SPREAD`: use as many nodes as possible"),
    ] = "PACK"
    storage: Annotated[
        str | None,
        Field(
            description="where checkpoints rest: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, or the absolute path of a "
            "mounted folder; null: in the run's folder on the head. Credentials come from the environment alone"
        ),
    ] = None
    keep_checkpoints: Annotated[
        int | None, Field(ge=1, description="keep only this many of the newest checkpoints; null: all")
    ] = None
    keep_best: Annotated[
        bool, Field(description="beyond keep_checkpoints, keep the checkpoint of the lowest evaluation loss")
    ] = True
    on_checkpoint_failure: Annotated[
        Literal["continue", "stop"],
        Field(description="when a checkpoint does not reach the head: train on to the next one, or end the run"),
    ] = "continue"
    warn_free_gib: Annotated[
        float, Field(ge=0, description="an event says so when less is free on the head's disk after a checkpoint")
    ] = 10.0
    refuse_free_gib: Annotated[
        float, Field(ge=0, description="no checkpoint is begun when less is free on the head's disk")
    ] = 0.5
    watchdog: WatchdogConfig = WatchdogConfig()

    @field_validator("storage")
    @classmethod
    def _is_a_place(cls, value: str | None) -> str | None:
        if value is not None and not is_storage(value):
            raise ValueError(
                f"{value!r} is no place for checkpoints; give s3://BUCKET/PREFIX or gs://BUCKET/PREFIX without keys or "
                "options, which are read from the environment, or an absolute path"
            )
        return value


def ranks_of(workers: int | str | WorkerRange) -> int | None:
    """The number of ranks in a configuration, the fewest of an elastic run. None where it is `auto`."""
    if isinstance(workers, WorkerRange):
        return workers.min
    return workers if isinstance(workers, int) else None
