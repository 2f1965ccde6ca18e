"""What can be told to be wrong with a run's inputs before anything starts, all of it at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.display import Display
from gemfleet.launcher.result.delivery.deliver import check_delivery
from gemfleet.launcher.sources.fetch import check_sources, fetch_once, is_remote, names_remote_sources
from gemfleet.train.config.deepspeed_check import check_deepspeed
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.config.schema import DataConfig, TrainConfig
from gemfleet.train.data.demo import MODEL_FOLDER
from gemfleet.train.data.readers import LOOKAHEAD, Row, is_hub_id, open_rows
from gemfleet.train.data.text_only import refuse_media
from gemfleet.train.data.tokenizing import choose_format, columns_by_format
from gemfleet.train.data.unheard import refuse_unheard
from gemfleet.train.errors import UserError
from gemfleet.train.local.source import eval_section
from gemfleet.train.model.base_check import check_base, load_tokenizer
from gemfleet.train.model.gemma import lora_targets
from gemfleet.train.model.hub_lookup import cached_model, look_up_data, look_up_model
from gemfleet.train.model.resolve import check_context, check_model_folder

Check = Callable[[], object]


def check_everything(config: LaunchConfig) -> None:
    """Raise one UserError for addresses that are refused, and for all that is wrong with inputs that are here."""
    tell_all(
        [
            partial(check_sources, config.train),
            partial(check_delivery, config.output.deliver),
            *input_checks(config.train),
        ]
    )


def with_clones(config: LaunchConfig, run_folder: Path, display: Display) -> LaunchConfig:
    """The configuration with copies of the repositories and stores that it names; they are checked like any folder."""
    if not names_remote_sources(config.train):
        return config
    display.phase("fetching")
    cache = gemfleet_home() / "cache" / "repositories"
    train = fetch_once(config.train, cache, run_folder / "repositories.json", display.advance)
    check_inputs(train)
    return config.model_copy(update={"train": train})


def check_inputs(train: TrainConfig) -> None:
    """The model's folder, what the data's files begin with, and the DeepSpeed configuration; one UserError for all."""
    tell_all(input_checks(train))


def tell_all(checks: Sequence[Check]) -> None:
    """Run all checks. UserError with the one problem found, or with a line for each."""
    problems = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    if len(problems) > 1:
        raise UserError(f"{len(problems)} problems:\n" + "\n".join(f"  {line}" for line in problems))
    if problems:
        raise UserError(problems[0])


def input_checks(train: TrainConfig) -> list[Check]:
    """Sources that have to be fetched first are checked once they are."""
    sections = [train.data, *([eval_section(train.data)] if train.data.eval is not None else [])]
    return [
        *([] if is_remote(train.model) else [partial(check_model, train)]),
        *(partial(check_data, data) for data in sections if not is_remote(data.train)),
        partial(check_deepspeed, train),
    ]


def check_model(train: TrainConfig) -> None:
    """UserError for a model that is not there, could not be loaded, lacks a target module or has too short a context.

    A hub's model that was not fetched yet is only looked up, and a demonstration that was not converted yet is not
    looked at.
    """
    local = Path(train.model).expanduser()
    folder: Path | None
    if train.model == "demo":
        folder = gemfleet_home() / "cache" / "models" / MODEL_FOLDER
        folder = folder if folder.is_dir() else None
    elif local.exists() or train.model.startswith((".", "/", "~")):
        folder = local
    else:
        folder = cached_model(train.model)
        if folder is None:
            look_up_model(train.model)
    if folder is not None:
        check_context(check_model_folder(folder), train.data.max_length)
        lora_targets(check_base(folder), train.lora.target_modules)
        load_tokenizer(folder)


def check_data(data: DataConfig) -> None:
    """UserError for data that is not there or has the wrong columns, and for what its first rows have wrong.

    A hub's data set is only looked up.
    """
    if is_hub_id(data.train):
        look_up_data(data.train)
        return
    source = open_rows(data.train, data.split, data.limit)
    used = columns_by_format(data)[choose_format(data, source.columns)] if source.columns else ()
    for row in islice(source.rows, LOOKAHEAD):
        if isinstance(row, Row):
            refuse_media(row, data)
            refuse_unheard(row, data, used)
