"""The sections `trackers` and `notify`: who is told of a run, beside the registry on the head."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from gemfleet.train.config.strict import StrictModel
from pydantic import Field, field_validator, model_validator

FIELDS = {"mlflow": ("uri", "experiment"), "wandb": ("project", "entity", "mode")}
URI = re.compile(r"https?://[^/\s]+.*|file:(//)?/\S.*|sqlite:////\S.*|databricks(://\S+)?")
ADDRESS = re.compile(r"https?://[^/\s?#]+(/\S*)?")
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


class NotifyConfig(StrictModel):
    """A webhook that is told how the run ends or that it stalls. Its address is a secret, because whoever knows it can
    write there."""

    url: Annotated[str, Field(min_length=1, repr=False, description="address of the webhook, https://HOST/PATH")]
    on: Annotated[
        tuple[Literal["succeeded", "failed", "interrupted", "stalled"], ...],
        Field(strict=False, description="`stalled`: a rank made no progress for as long as the watchdog allows"),
    ] = ("succeeded", "failed", "interrupted", "stalled")
    format: Annotated[Literal["json", "slack"], Field(description="`slack`: a text, as Slack's webhooks take it")] = (
        "json"
    )
    secret: Annotated[
        str | None,
        Field(
            pattern=VARIABLE,
            repr=False,
            description="name of the environment variable on the head whose value signs messages; null: unsigned",
        ),
    ] = None

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if not ADDRESS.fullmatch(value):  # the value is not said
            raise ValueError("is no address of a webhook; give https://HOST/PATH, or http:// for a host of your own")
        return value

    @field_validator("secret")
    @classmethod
    def _is_no_secret_itself(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("whsec_"):  # the value is not said
            raise ValueError("is a secret itself; put it into a variable of the head's environment and give its name")
        return value

    @property
    def place(self) -> str:
        """The address without what is secret in it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


class TrackerConfig(StrictModel):
    """An experiment tracker that follows the run. Credentials come from the environment alone."""

    type: Annotated[
        Literal["mlflow", "wandb"],
        Field(description="MLflow (extra `mlflow`) or Weights & Biases (extra `wandb`)"),
    ]
    uri: Annotated[
        str | None,
        Field(
            description="of MLflow: http(s)://SERVER, file:///FOLDER, sqlite:////FILE or databricks; null: "
            "$MLFLOW_TRACKING_URI"
        ),
    ] = None
    experiment: Annotated[str | None, Field(min_length=1, description="of MLflow; null: `gemfleet`")] = None
    project: Annotated[str | None, Field(min_length=1, description="of W&B; null: `gemfleet`")] = None
    entity: Annotated[str | None, Field(min_length=1, description="of W&B: user or team; null: the user's own")] = None
    mode: Annotated[
        Literal["online", "offline"] | None,
        Field(description="of W&B; `offline` writes files into the run's folder; null: `online`"),
    ] = None

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        ours = FIELDS[self.type]
        foreign = [name for names in FIELDS.values() for name in names if name not in ours and getattr(self, name)]
        if foreign:
            raise ValueError(f"{foreign[0]} is no field of a tracker of type {self.type}, which has {', '.join(ours)}")
        return self

    @field_validator("uri")
    @classmethod
    def _is_a_place(cls, value: str | None) -> str | None:
        if value is None:
            return value
        if not URI.fullmatch(value):
            raise ValueError(
                "is no address of MLflow; give http(s)://SERVER, file:///FOLDER or sqlite:////FILE with an absolute "
                "path, or databricks"
            )
        if "@" in urlsplit(value).netloc:
            raise ValueError(
                "holds a user or a password; put them into $MLFLOW_TRACKING_USERNAME and "
                "$MLFLOW_TRACKING_PASSWORD, or a token into $MLFLOW_TRACKING_TOKEN, on the head"
            )
        return value
