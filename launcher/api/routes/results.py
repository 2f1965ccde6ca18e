"""Routes of what a run published: its adapter, and its answers on the evaluation set beside the truth."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from gemfleet.launcher.api.archive import MEDIA_TYPE, archive_answers
from gemfleet.launcher.api.prediction_schemas import PredictionPage
from gemfleet.launcher.api.problems import responses
from gemfleet.launcher.api.published import open_adapter, prediction_page
from gemfleet.launcher.api.services import Needed

from .parameters import STEPS, RunId

router = APIRouter(prefix="/runs/{run_id}", tags=["results"])


@router.get(
    "/adapter/download",
    summary="The published adapter as a tar archive",
    response_class=StreamingResponse,
    responses={**responses(404, 422), **archive_answers()},
)
def download_adapter(services: Needed, run_id: RunId) -> StreamingResponse:
    """Adapter, tokenizer and card, without checkpoints and other forms of the model. 404 before it is published."""
    run = services.run(run_id)
    archive = open_adapter(services.settings.run_folder(run.id), f"{run.id}-adapter")
    return StreamingResponse(archive.chunks(), media_type=MEDIA_TYPE, headers=archive.headers())


@router.get("/predictions", summary="Answers beside the truth", responses=responses(404, 422))
def predictions(
    services: Needed,
    run_id: RunId,
    after: Annotated[int, Query(ge=0, le=STEPS, description="only answers whose number is greater")] = 0,
    limit: Annotated[int, Query(ge=1, le=100, description="at most so many")] = 20,
    differing: Annotated[bool, Query(description="only answers that are not their reference")] = False,
) -> PredictionPage:
    """Of the published evaluation set, in its order, with the metrics of all. Empty where the run answered nothing."""
    run = services.run(run_id)
    return prediction_page(services.settings.run_folder(run.id), run.id, after, limit, differing)
