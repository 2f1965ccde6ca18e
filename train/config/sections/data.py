"""The `train.data` section of a run's configuration: which data sets feed a run, and how a row becomes tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from ..strict import MOST, Size, StrictModel, parse_bytes
from .chat_template import is_template, read_template
from .data_format import ColumnsConfig, DataFormat, Name, Roles, TrainOn
from .pictures import PicturesConfig
from .set_names import distinct, listed, name_of


class DataSetConfig(StrictModel):
    """One of several data sets. What it does not say is as in `train.data`."""

    path: Annotated[
        str,
        Field(
            min_length=1,
            description="`demo`, a .jsonl/.json/.csv/.parquet file (also .gz or .zst), a folder or pattern of such, "
            "a `datasets` folder, or a hub id",
        ),
    ]
    name: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="null: the file's name")] = (
        None
    )
    weight: Annotated[
        float | None,
        Field(
            gt=0, allow_inf_nan=False, description="share of the examples of every epoch, relative to the other sets'"
        ),
    ] = None
    share: Annotated[
        float | None, Field(gt=0, lt=1, description="share of the examples of every epoch; all sets' shares sum to 1")
    ] = None
    format: DataFormat | None = None
    columns: ColumnsConfig | None = None
    roles: Roles | None = None
    merge_roles: bool | None = None
    train_on: TrainOn | None = None
    supervise_prompt: bool | None = None
    split: str | None = None
    limit: Annotated[int | None, Field(gt=0, le=MOST, description="use only the first N rows")] = None

    @model_serializer(mode="wrap")
    def _what_is_said(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Only what differs from `train.data`, so that a list stays readable."""
        said: dict[str, Any] = serialize(self)
        return {name: value for name, value in said.items() if value is not None}


def _listed(value: Any) -> Any:
    """In a list, a bare path stands for a data set without further settings."""
    return [{"path": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value


OneOrMore = Annotated[
    Name | Annotated[list[DataSetConfig], Field(min_length=1)],
    BeforeValidator(_listed),
]


@dataclass(frozen=True)
class DataSet:
    """One data set of a run, with every setting decided.

    field: of the configuration that names its path, as in `train.data.train`
    settings: of the configuration whose fields say how it is read, as in `train.data` or `train.data.train[0]`
    share: of the examples in every epoch; None: as many as it has
    section: the settings that all data sets of the run have in common
    """

    section: DataConfig
    field: str
    settings: str
    path: str
    name: str
    format: DataFormat
    columns: ColumnsConfig
    split: str
    limit: int | None
    roles: Mapping[str, str]
    merge_roles: bool
    train_on: TrainOn | None
    supervise_prompt: bool
    share: float | None = None


class DataConfig(StrictModel):
    """Where the examples come from and how one row becomes tokens."""

    train: Annotated[
        OneOrMore,
        Field(
            description="`demo`, a .jsonl/.json/.csv/.parquet file (also .gz or .zst), a folder or pattern of such, "
            "a `datasets` folder, or a hub id; or a list of data sets, each a path or a mapping"
        ),
    ]
    eval: Annotated[
        OneOrMore | None,
        Field(description="as `train`; each set of a list has a loss of its own; null: split off `eval_fraction`"),
    ] = None
    eval_fraction: Annotated[
        float, Field(ge=0, lt=1, description="share of `train` held out when `eval` is null; 0: no evaluation")
    ] = 0.1
    split: Annotated[str, Field(description="split of a hub id, `datasets` folder or folder of files to train on")] = (
        "train"
    )
    format: Annotated[DataFormat, Field(description="`auto`: by the columns that are there")] = "auto"
    columns: ColumnsConfig = ColumnsConfig()
    roles: Roles = Field(
        default_factory=dict,
        description="what the data's roles mean, as in {bot: assistant}: system, user, assistant, tool, function_call",
    )
    merge_roles: Annotated[
        bool, Field(description="join turns of one role in a row; false: leave such conversations out")
    ] = False
    chat_template: Annotated[
        str,
        Field(
            min_length=1,
            description="how chats become text: `gemma`'s turns, the `tokenizer`'s own template, a Jinja file, or a "
            "template itself",
        ),
    ] = "gemma"
    train_on: Annotated[
        TrainOn | None,
        Field(
            description="`all` answers of a chat, the `last`, or those of the `completion` (after the last question); "
            "null: completion for prompt_completion, else all"
        ),
    ] = None
    supervise_prompt: Annotated[bool, Field(description="learn prompts and questions too, not answers alone")] = False
    ignore_columns: Annotated[
        tuple[str, ...],
        Field(
            strict=False,
            description="columns, or keys of messages, that look like training data and are to be ignored",
        ),
    ] = ()
    pictures: PicturesConfig = PicturesConfig()
    max_length: Annotated[
        int, Field(gt=1, le=MOST, description="tokens in a packed row, and the longest example accepted")
    ] = 1024
    too_long: Annotated[
        Literal["skip", "truncate"], Field(description="examples over max_length: count and leave out, or cut off")
    ] = "skip"
    bad_rows: Annotated[
        Literal["skip", "fail"], Field(description="rows that cannot be used: count and leave out, or end the run")
    ] = "skip"
    add_eos: Annotated[
        bool, Field(description="end `text` and `completion` examples with the end-of-sequence token")
    ] = True
    limit: Annotated[int | None, Field(gt=0, le=MOST, description="use only the first N rows")] = None
    cache: Annotated[
        Literal[0] | Size,
        Field(
            description="size of all tokenised data that the head keeps for later runs: bytes, or a number with KiB, "
            "MiB or GiB; 0: keep and use none"
        ),
    ] = "20GiB"

    @property
    def cache_bytes(self) -> int:
        return parse_bytes(self.cache)

    @field_validator("chat_template")
    @classmethod
    def _file_becomes_content(cls, value: str, info: ValidationInfo) -> str:
        """Reads the file now, on the machine that has it; other nodes get its content."""
        named = value in ("gemma", "tokenizer") or is_template(value)
        return value if named else read_template(value, (info.context or {}).get("folder"))

    @field_validator("train")
    @classmethod
    def _shares_make_sense(cls, value: str | list[DataSetConfig]) -> str | list[DataSetConfig]:
        sets = [] if isinstance(value, str) else value
        for kind in ("weight", "share"):
            told = [entry for entry in sets if getattr(entry, kind) is not None]
            if told and len(told) < len(sets):
                without = next(entry.path for entry in sets if getattr(entry, kind) is None)
                raise ValueError(f"found a {kind} for {told[0].path} and none for {without}; give every set a {kind}")
        if any(entry.weight and entry.share for entry in sets):
            raise ValueError("found both `weight` and `share`; give every set one of them")
        shares = [entry.share for entry in sets if entry.share]
        if shares and not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise ValueError(f"found shares that sum to {sum(shares):g}; they must sum to 1 (or give `weight`s)")
        return value

    @field_validator("eval")
    @classmethod
    def _evaluation_sets_differ(cls, value: str | list[DataSetConfig] | None) -> str | list[DataSetConfig] | None:
        sets = value if isinstance(value, list) else []
        if found := next((entry for entry in sets if entry.weight or entry.share), None):
            raise ValueError(f"found a weight or share for {found.path}; evaluation scores every example once")
        names = [name_of(entry.path, entry.name) for entry in sets]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"found two sets named {twice!r}; give each a `name` of its own")
        return value

    @model_validator(mode="after")
    def _whole_chats_leave_nothing_to_choose(self) -> DataConfig:
        for found in (*self.train_sets(), *self.eval_sets()):
            if found.supervise_prompt and found.train_on:
                raise ValueError(
                    f"{found.settings}.supervise_prompt is true, which trains on all of a chat, but train_on is "
                    f"{found.train_on}; leave one of them out"
                )
        return self

    def train_sets(self) -> list[DataSet]:
        """The data sets to train on."""
        if isinstance(self.train, str):
            return [self._whole("train", self.train, self.split, self.limit)]
        total = sum(entry.weight or entry.share or 0 for entry in self.train)
        names = distinct([name_of(entry.path, entry.name) for entry in self.train])
        return [
            self._member(
                f"train[{index}]",
                entry.model_copy(update={"name": name}),
                self.split,
                self.limit,
                share=(entry.weight or entry.share or 0) / total if total else None,
            )
            for index, (entry, name) in enumerate(zip(self.train, names, strict=True))
        ]

    def eval_sets(self) -> list[DataSet]:
        """The data sets to evaluate on, which may be none. `train.data.limit` does not hold for them.

        A file is read whole: `train.data.split` chooses only among files that belong together.
        """
        if self.eval is None:
            return []
        if isinstance(self.eval, str):
            return [self._whole("eval", self.eval, self._eval_split(self.eval), None)]
        return [
            self._member(f"eval[{index}]", entry, self._eval_split(entry.path), None)
            for index, entry in enumerate(self.eval)
        ]

    def evaluated(self) -> list[str]:
        """The names of the sets with an evaluation loss: of `eval`, else of those that a share is held out of."""
        sets = self.eval_sets() or (self.train_sets() if self.eval_fraction else [])
        return [found.name for found in sets]

    def _eval_split(self, path: str) -> str:
        return "train" if Path(path).expanduser().is_file() else self.split

    def _whole(self, field: str, path: str, split: str, limit: int | None) -> DataSet:
        return DataSet(
            self,
            f"train.data.{field}",
            "train.data",
            path,
            name_of(path, None),
            self.format,
            self.columns,
            split,
            limit,
            self.roles,
            self.merge_roles,
            self.train_on,
            self.supervise_prompt,
        )

    def _member(
        self, field: str, entry: DataSetConfig, split: str, limit: int | None, share: float | None = None
    ) -> DataSet:
        return DataSet(
            self,
            f"train.data.{field}.path",
            f"train.data.{field}",
            entry.path,
            name_of(entry.path, entry.name),
            entry.format or self.format,
            entry.columns or self.columns,
            entry.split or split,
            entry.limit or limit,
            self.roles if entry.roles is None else entry.roles,
            self.merge_roles if entry.merge_roles is None else entry.merge_roles,
            entry.train_on or self.train_on,
            self.supervise_prompt if entry.supervise_prompt is None else entry.supervise_prompt,
            share,
        )

    def paths(self) -> dict[str, str]:
        """The path of each data set, by its field, as in `train.data.train` or `train.data.eval[1].path`."""
        return {found.field: found.path for found in (*self.train_sets(), *self.eval_sets())}

    def with_paths(self, paths: Mapping[str, str]) -> DataConfig:
        """The section with other paths for the given fields. See `paths`."""
        return self.model_copy(
            update={
                "train": _replaced("train.data.train", self.train, paths),
                "eval": None if self.eval is None else _replaced("train.data.eval", self.eval, paths),
            }
        )

    def spoken(self) -> str:
        """The data to train on, for a sentence."""
        return listed([found.path for found in self.train_sets()])


def _replaced(field: str, value: str | list[DataSetConfig], paths: Mapping[str, str]) -> str | list[DataSetConfig]:
    if isinstance(value, str):
        return paths.get(field, value)
    return [
        entry.model_copy(update={"path": paths.get(f"{field}[{index}].path", entry.path)})
        for index, entry in enumerate(value)
    ]
