"""What the API answers about a run's published predictions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field


class PredictionView(BaseModel):
    """One answer of the run's adapter, beside the truth. Long texts are cut."""

    number: Annotated[int, Field(description="its line in predictions.jsonl, from 1", examples=[1])]
    prompt: str
    reference: Annotated[str, Field(description="the truth")]
    prediction: str
    same: Annotated[bool, Field(description="whether both are equal, spaces around them aside")]
    pictures: Annotated[list[str], Field(description="of the first answers: small copies, as `data:` addresses")] = []


class PredictionPage(BaseModel):
    """Answers in the order of the evaluation set. The next page begins after the last `number`: pass it as `after`."""

    object: Literal["list"] = "list"
    run_id: str
    metrics: Annotated[dict[str, float | None], Field(description="of all answers, as metrics.json has them")]
    data: list[PredictionView]
    has_more: bool
