"""Routes that list runs, show one and its configuration, and submit, stop and resume runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from gemfleet.cluster.errors import RunConflict
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.api.problems import responses
from gemfleet.launcher.api.redaction import redact
from gemfleet.launcher.api.schemas import (
    Listing,
    RunChange,
    RunConfiguration,
    RunData,
    RunDetail,
    RunSummary,
    Submission,
)
from gemfleet.launcher.api.services import Needed
from gemfleet.launcher.api.submissions import checked_config
from gemfleet.launcher.api.views import config_of, data_view, run_detail, run_summary
from gemfleet.launcher.runs.names import new_run_id

from .parameters import Absent, AfterRun, RunId, Tags

router = APIRouter(prefix="/runs", tags=["runs"])


@router.get("", summary="The runs of this head, newest first", responses=responses(404, 422))
def list_runs(
    services: Needed,
    limit: Annotated[int, Query(ge=1, le=500, description="at most so many")] = 20,
    after: AfterRun = None,
    status: Annotated[RunState | Absent, Query(description="only runs in this state")] = None,
    archived: Annotated[bool, Query(description="only archived runs, or only the others")] = False,
    tag: Tags = None,
) -> Listing[RunSummary]:
    if after is not None:
        services.run(after)
    tags = {key: value if sign else None for key, sign, value in (one.partition("=") for one in tag or [])}
    found = services.reader.list_runs(limit + 1, after, status, archived, tags)
    return Listing[RunSummary].of([run_summary(services.reader, run) for run in found], limit)


@router.post("", status_code=201, summary="Start a run", responses=responses(400, 403, 413, 422))
def submit_run(services: Needed, submission: Submission, response: Response) -> RunDetail:
    """Start a run from the content of a configuration file. The run does not depend on the API.

    Paths and addresses must lie below those with which the API was started. Code and pickles cannot be named.
    """
    config = checked_config(submission.config, services.settings.allowed)
    run_id = new_run_id(config.name or "run")
    services.submitter.start(run_id, config.model_dump(mode="json", by_alias=True))
    if submission.tags:
        services.registry.annotate(run_id, submission.tags)
    response.headers["Location"] = f"/api/v1/runs/{run_id}"
    return _detail(services, run_id)


@router.get("/{run_id}", summary="All that is known of a run", responses=responses(404, 422))
async def get_run(services: Needed, run_id: RunId) -> RunDetail:
    return _detail(services, run_id)


@router.patch("/{run_id}", summary="Tag it, archive it", responses=responses(400, 403, 404, 409, 422))
def change_run(services: Needed, run_id: RunId, change: RunChange) -> RunDetail:
    """Change what people say of a run. 409 for archiving a run that has not ended, and for too many tags."""
    services.registry.annotate(services.run(run_id).id, change.tags, change.archived)
    return _detail(services, run_id)


@router.post("/{run_id}/stop", status_code=202, summary="Checkpoint, then end", responses=responses(403, 404, 409, 422))
def stop_run(services: Needed, run_id: RunId) -> RunDetail:
    """Ask a run to save a checkpoint after its current step, and end. 409 when it has ended."""
    services.registry.request_stop(services.run(run_id).id)
    return _detail(services, run_id)


@router.post(
    "/{run_id}/resume",
    status_code=202,
    summary="Go on from the newest whole checkpoint",
    responses=responses(403, 404, 409, 422),
)
def resume_run(services: Needed, run_id: RunId) -> RunDetail:
    """Resume a run that has ended, under its id and with the configuration in its folder.

    The run does not depend on the API. 409 while it runs, and when it has succeeded.
    """
    run = services.run(run_id)
    if run.state is RunState.SUCCEEDED:
        more = f"gemfleet resume {run_id} --set train.epochs=N"
        raise RunConflict(f"run {run_id} has succeeded, so nothing is left to do; on the head, `{more}` asks for more")
    services.submitter.resume(run)
    return _detail(services, run_id)


@router.get("/{run_id}/config", summary="The configuration, spelled out", responses=responses(404, 422))
def get_config(services: Needed, run_id: RunId) -> RunConfiguration:
    return RunConfiguration(run_id=run_id, config=redact(config_of(services.run(run_id))))


@router.get("/{run_id}/data", summary="What it trains on", responses=responses(404, 422))
def get_data(services: Needed, run_id: RunId) -> RunData:
    """Counts of its rows and tokens, and a few examples with the text that the loss is computed on."""
    run = services.run(run_id)
    return RunData(run_id=run.id, view=data_view(services.settings.run_folder(run.id)))


def _detail(services: Needed, run_id: str) -> RunDetail:
    run = services.run(run_id)
    return run_detail(services.reader, run, services.settings.run_folder(run.id), f"/api/v1/runs/{run.id}")
