"""Routes that list sweeps and show one with its trials."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Path, Query
from gemfleet.launcher.runs.sweep_view import view_sweep
from gemfleet.launcher.runs.sweeps import all_sweeps, read_sweep

from ..problems import ApiError, responses
from ..services import Needed
from ..sweep_schemas import SweepDetail, SweepList, sweep_detail, sweep_summary
from .parameters import RUN_ID

router = APIRouter(prefix="/sweeps", tags=["sweeps"])
SweepId = Annotated[
    str, Path(pattern=RUN_ID, description="the whole id of a sweep", examples=["lr-20260102-030405-1a2b"])
]


@router.get("", summary="The sweeps of this head, newest first", responses=responses(422))
def list_sweeps(
    services: Needed, limit: Annotated[int, Query(ge=1, le=100, description="at most so many")] = 20
) -> SweepList:
    home = services.settings.home
    views = [view_sweep(home, services.reader, sweep) for sweep in islice(all_sweeps(home), limit)]
    return SweepList(data=[sweep_summary(view) for view in views])


@router.get("/{sweep_id}", summary="A sweep and its trials", responses=responses(404, 422))
def get_sweep(services: Needed, sweep_id: SweepId) -> SweepDetail:
    """Each trial is a run: its figures, events and checkpoints are below `/runs/{run_id}`, and it is stopped there."""
    home = services.settings.home
    sweep = read_sweep(home, sweep_id)
    if sweep is None:
        raise ApiError(404, f"there is no sweep {sweep_id!r}; `gemfleet runs` names them")
    return sweep_detail(view_sweep(home, services.reader, sweep))
