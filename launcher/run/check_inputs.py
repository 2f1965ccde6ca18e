"""Checks a run's inputs before anything starts, and names all problems at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.data_view.tokenizer import model_here, quick_tokenizer
from gemfleet.launcher.display import Display
from gemfleet.launcher.notices.start import check_notices
from gemfleet.launcher.result.delivery.deliver import check_delivery
from gemfleet.launcher.result.gguf import check_converter
from gemfleet.launcher.sources.fetch import check_sources, fetch_once, is_remote, names_remote_sources
from gemfleet.launcher.tracking.check import check_trackers
from gemfleet.train.config.deepspeed_check import check_deepspeed
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.data import DataSet
from gemfleet.train.data.pictures.format import PictureFormat
from gemfleet.train.data.readers import LOOKAHEAD, Row, is_hub_id, open_set
from gemfleet.train.data.templates.rendered import custom_template
from gemfleet.train.data.text_only import refuse_media
from gemfleet.train.data.tokenizing import choose_format
from gemfleet.train.data.unheard import refuse_unheard, without_ignored
from gemfleet.train.errors import UserError
from gemfleet.train.model.base_check import check_base
from gemfleet.train.model.gemma import lora_targets
from gemfleet.train.model.hub_lookup import look_up_data, look_up_model
from gemfleet.train.model.resolve import check_context, check_model_folder

from .starting_adapter import check_starting_adapter

Check = Callable[[], object]


def check_everything(config: LaunchConfig) -> None:
    """Check all addresses, and all inputs on this machine. One UserError names every problem."""
    model = config.train.model
    tell_all(
        [
            partial(check_sources, config.train),
            partial(check_delivery, config.output.deliver),
            partial(check_trackers, config.trackers),
            partial(check_notices, config.notify),
            partial(check_converter, config.output.formats, None if is_remote(model) else model_here(model)),
            *input_checks(config.train),
        ]
    )


def with_clones(config: LaunchConfig, run_folder: Path, display: Display) -> LaunchConfig:
    """Fetch the repositories and stores that a configuration names, and check the copies.

    Returns the configuration with the copies' paths in place of the addresses.
    """
    if not names_remote_sources(config.train):
        return config
    display.phase("fetching")
    cache = gemfleet_home() / "cache" / "repositories"
    train = fetch_once(config.train, cache, run_folder / "repositories.json", display.advance)
    check_inputs(train)
    return config.model_copy(update={"train": train})


def check_inputs(train: TrainConfig) -> None:
    """Check the model's folder, the first rows of the data and the DeepSpeed configuration. One UserError for all."""
    tell_all(input_checks(train))


def tell_all(checks: Sequence[Check]) -> None:
    """Run all checks. Raises UserError with the one problem, or with a line for each."""
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
    """The checks of all inputs on this machine. Remote sources are left out: `with_clones` checks their copies."""
    sets = [*train.data.train_sets(), *train.data.eval_sets()]
    return [
        *([] if is_remote(train.model) else [partial(check_model, train)]),
        *(partial(check_data, data, partial(sees, train.model)) for data in sets if not is_remote(data.path)),
        partial(check_starting_adapter, train),
        partial(check_deepspeed, train),
    ]


def check_model(train: TrainConfig) -> None:
    """Raise UserError for a model that is missing, cannot be loaded, lacks a target module or has too short a context.

    A hub's model that is not on this machine is only looked up. A `demo` that is not converted yet is not checked.
    """
    folder = model_here(train.model)
    if folder is None and train.model != "demo":
        look_up_model(train.model)
    if folder is not None:
        check_context(check_model_folder(folder), train.data.max_length)
        lora_targets(check_base(folder), train.lora.target_modules)
        tokenizer, data = quick_tokenizer(folder), train.data
        for train_on in {found.train_on for found in (*data.train_sets(), *data.eval_sets())}:
            custom_template(tokenizer, data, train_on)


def sees(model: str) -> bool:
    """Whether a base takes pictures. One that is not on this machine yet may; its data is asked again then."""
    folder = None if is_remote(model) else model_here(model)
    try:
        return model != "demo" and (folder is None or PictureFormat.of(folder) is not None)
    except UserError:  # a broken base, of which `check_model` tells
        return True


def check_data(data: DataSet, sees: Callable[[], bool]) -> None:
    """Raise UserError for data that is missing or has wrong columns, and for mistakes in its first rows.

    sees: whether the base takes pictures. A hub's data set is only looked up.
    """
    if is_hub_id(data.path):
        look_up_data(data.path)
        return
    source = open_set(data)
    if not source.columns:
        return
    row_format = choose_format(data, source.columns)
    for row in islice(source.rows, LOOKAHEAD):
        if isinstance(row, Row):
            heard = without_ignored(row, data)
            refuse_media(heard, data, sees())
            refuse_unheard(heard, data, row_format)
