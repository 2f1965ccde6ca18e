"""Routes that list the checkpoints of a run and download one."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from gemfleet.launcher.api.archive import MEDIA_TYPE, archive_answers, open_archive
from gemfleet.launcher.api.problems import ApiError, responses
from gemfleet.launcher.api.schemas import Checkpoint, Listing
from gemfleet.launcher.api.services import Needed
from gemfleet.launcher.api.views import checkpoint_folder, checkpoint_view

from .parameters import Limit, RunId, Step

router = APIRouter(prefix="/runs/{run_id}/checkpoints", tags=["checkpoints"])


@router.get("", summary="Its checkpoints, newest first", responses=responses(404, 422))
def list_checkpoints(services: Needed, run_id: RunId, limit: Limit = 100) -> Listing[Checkpoint]:
    run = services.run(run_id)
    folder, prefix = services.settings.run_folder(run.id), f"/api/v1/runs/{run.id}"
    rows = services.reader.checkpoints(run.id, newest_first=True)[: limit + 1]
    return Listing[Checkpoint].of([checkpoint_view(run.id, row, folder, prefix) for row in rows], limit)


@router.get(
    "/{step}/download",
    summary="A checkpoint as a tar archive",
    response_class=StreamingResponse,
    responses={**responses(404, 409, 422), **archive_answers()},
)
def download(services: Needed, run_id: RunId, step: Step) -> StreamingResponse:
    """Compares every file with the manifest's sha256 before it sends the first byte. 409 when a file is damaged."""
    run = services.run(run_id)
    found = [row for row in services.reader.checkpoints(run.id) if row["step"] == step]
    if not found:
        raise ApiError(404, f"run {run.id} has no checkpoint of step {step}; its checkpoints are listed one level up")
    folder = checkpoint_folder(found[0], services.settings.run_folder(run.id))
    if folder is None:
        fetch = f"`gemfleet checkpoints {run.id} pull {step} DEST` on the head fetches it"
        raise ApiError(409, f"checkpoint-{step} lies in an object store, which the API does not ask; {fetch}")
    archive = open_archive(folder, f"{run.id}-{step}")
    return StreamingResponse(archive.chunks(), media_type=MEDIA_TYPE, headers=archive.headers())
