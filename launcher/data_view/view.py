"""The description of a run's data: what the command, its HTML page, the API and the board show.

Tokens are counted without padding. Texts are without control characters, so that each place may show them as they are.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field


class Span(BaseModel):
    """A stretch of an example's text whose tokens are all supervised, or all not."""

    text: str
    supervised: Annotated[bool, Field(description="whether the loss scores these tokens")]


class Example(BaseModel):
    """One row as the model sees it."""

    name: Annotated[str, Field(examples=["answers.jsonl line 17"])]
    tokens: int
    supervised_tokens: int
    spans: Annotated[list[Span], Field(description="its text in order; empty where the row became no tokens")]
    pictures: Annotated[
        list[Annotated[str, Field(pattern=r"^data:image/jpeg;base64,[A-Za-z0-9+/]+=*$")]],
        Field(description="small copies of its first pictures, in order, as the model sees them"),
    ] = []
    left_out: Annotated[str, Field(description="why no step trains on it; empty: it is used")] = ""


class LeftOutRows(BaseModel):
    """The rows that are left out for one reason."""

    reason: Annotated[str, Field(examples=["longer than max_length 1024"])]
    count: int
    first: Annotated[list[str], Field(description="the first of these rows")]


class SetView(BaseModel):
    """One data set."""

    name: str
    path: str
    use: Annotated[Literal["train", "eval"], Field(description="whether it is trained on or scored")]
    format: Annotated[str, Field(description="as `train.data.format` names it", examples=["messages"])]
    rows: Annotated[int, Field(description="rows read")]
    examples: Annotated[int, Field(description="usable rows, without those that are held out for evaluation")]
    held_out: Annotated[int, Field(description="usable rows that are held out for evaluation")] = 0
    epoch_examples: Annotated[int, Field(description="examples of it that an epoch has; some of them repeated")] = 0
    tokens: Annotated[int, Field(description="of the examples; those held out do not count")]
    supervised_tokens: int
    pictures: Annotated[int, Field(description="of the examples; one that several of them have counts for each")] = 0
    truncated: Annotated[int, Field(description="examples cut off at max_length")] = 0
    left_out: list[LeftOutRows]
    unused: Annotated[list[str], Field(description="columns, and keys of messages, that nobody reads")]


class Bucket(BaseModel):
    """The examples of `shortest` to `longest` tokens."""

    shortest: int
    longest: int
    count: int


class Lengths(BaseModel):
    """Tokens of an example."""

    shortest: int
    median: int
    longest: int
    histogram: list[Bucket]


class Epoch(BaseModel):
    """One pass over the examples to train on."""

    examples: int
    tokens: int
    supervised_tokens: int
    pictures: int = 0
    global_batch: Annotated[int, Field(description="examples of a step")]
    steps: int
    steps_of_run: Annotated[int, Field(description="of all epochs")]
    ranks: Annotated[int, Field(description="between which a step's examples are divided")]
    row_tokens: Annotated[int, Field(description="tokens for which a packed row has room: max_length")]
    rows: Annotated[float, Field(description="packed rows of a step")]
    fill: Annotated[float, Field(ge=0, le=1, description="share of the packed rows that holds tokens")]


class DataView(BaseModel):
    """What a run trains on. limit: how many rows of each set were read; null: all"""

    model: str
    limit: int | None = None
    sets: list[SetView]
    lengths: Annotated[Lengths | None, Field(description="of the examples to train on; null: there are none")]
    epoch: Annotated[Epoch | None, Field(description="the first one; null: there is nothing to train on")]
    time: Annotated[str, Field(description="how long the plan expects training to take; empty: was not asked")] = ""
    refused: Annotated[str, Field(description="why a run would refuse this data; empty: it would not")] = ""
    notes: list[str]
    examples: list[Example]
