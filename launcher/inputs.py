"""What can be told to be wrong with a run's inputs before anything starts."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from gemfleet.train.base_check import check_base, load_tokenizer
from gemfleet.train.config import TrainConfig
from gemfleet.train.home import gemfleet_home
from gemfleet.train.local_source import eval_section
from gemfleet.train.readers import LOOKAHEAD, Row, open_rows
from gemfleet.train.resolve import check_context, check_model_folder
from gemfleet.train.text_only import refuse_media
from gemfleet.train.tokenizing import choose_format, columns_by_format
from gemfleet.train.unheard import refuse_unheard

from .config import LaunchConfig
from .delivery.deliver import check_delivery
from .progress import Display
from .sources.fetch import check_sources, fetch_once, names_remote_sources


def check_everything(config: LaunchConfig) -> None:
    """Raise UserError for addresses that are refused, and for what is wrong with inputs that are here already."""
    check_sources(config.train)
    check_delivery(config.output.deliver)
    check_inputs(config.train)


def with_clones(config: LaunchConfig, run_folder: Path, display: Display) -> LaunchConfig:
    """The configuration with copies of the repositories and stores that it names; they are checked like any folder."""
    if not names_remote_sources(config.train):
        return config
    display.phase("fetching")
    cache = gemfleet_home() / "cache" / "repositories"
    train = fetch_once(config.train, cache, run_folder / "repositories.json", display.advance)
    check_inputs(train)
    return config.model_copy(update={"train": train})


def check_model(folder: Path, train: TrainConfig) -> None:
    """UserError for a checked folder whose weights or tokenizer could not be loaded, or whose context is too short."""
    check_context(folder, train.data.max_length)
    check_base(folder)
    load_tokenizer(folder)


def check_inputs(train: TrainConfig) -> None:
    """The model's folder, the data's files and their columns."""
    model = Path(train.model).expanduser()
    if train.model != "demo" and (model.exists() or train.model.startswith((".", "/", "~"))):
        check_model(check_model_folder(model), train)
    for data in [train.data, *([eval_section(train.data)] if train.data.eval is not None else [])]:
        if Path(data.train).expanduser().exists():
            source = open_rows(data.train, data.split, data.limit)
            used = columns_by_format(data)[choose_format(data, source.columns)] if source.columns else ()
            for row in islice(source.rows, LOOKAHEAD):
                if isinstance(row, Row):
                    refuse_media(row, data)
                    refuse_unheard(row, data, used)
