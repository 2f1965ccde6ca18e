"""Parameters that several routes share. No other text of a request ever becomes part of a file's path."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query
from gemfleet.cluster.registry.run_records import MOST_TAGS
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

RUN_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
STEPS = 2**53
RunId = Annotated[
    str, Path(pattern=RUN_ID, description="the whole id of a run", examples=["demo-20260102-030405-1a2b"])
]
Step = Annotated[int, Path(ge=0, le=STEPS, description="the step of a checkpoint", examples=[40])]
Limit = Annotated[int, Query(ge=1, le=1000, description="at most so many")]
Absent = SkipJsonSchema[None]  # the parameter may be left out, but not be `null`
AfterRun = Annotated[
    Annotated[str, Field(pattern=RUN_ID)] | Absent,
    Query(description="the `last_id` of the page before; an existing run"),
]
AfterEvent = Annotated[int, Query(ge=0, le=STEPS, description="only events whose id is greater")]
SinceStep = Annotated[int, Query(ge=0, le=STEPS, description="only this step and later ones")]
Tags = Annotated[
    Annotated[list[Annotated[str, Field(min_length=1, max_length=300)]], Field(max_length=MOST_TAGS)] | Absent,
    Query(description="only runs that have all of these tags: KEY=VALUE, or KEY for any value"),
]
