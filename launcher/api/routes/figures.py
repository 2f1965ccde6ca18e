"""What each figure of a step and of an evaluation is."""

from __future__ import annotations

from fastapi import APIRouter
from gemfleet.train.step.record import FIGURES

from ..schemas import FigureList
from ..views import figure_view

router = APIRouter(tags=["figures"])


@router.get("/figures", summary="What the figures of records mean, and where they are shown")
async def list_figures() -> FigureList:
    """In the order of a record: those of a step, then those of an evaluation. It is the same for all runs."""
    return FigureList(data=[figure_view(figure) for figure in FIGURES])
