"""Reads and writes the configuration file of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from gemfleet.train.config_file import beside, load_validated, parse_yaml, read_mapping
from gemfleet.train.precision import precision_note

from .config import LaunchConfig

__all__ = ["dump_config", "load_config", "parse_yaml", "read_mapping"]


def load_config(path: Path, overrides: Sequence[str] = ()) -> LaunchConfig:
    """The validated configuration, its paths found beside it. UserError's message has one line for each problem."""
    config = load_validated(path, overrides, LaunchConfig)
    return config.model_copy(update={"train": beside(path, config.train)})


def dump_config(config: LaunchConfig) -> str:
    """Every value spelled out, as YAML that `load_config` reads back to an equal configuration.

    A choice that is not carried out to the letter is said in a comment at the top.
    """
    note = precision_note(config.train.precision)
    head = f"# {note}\n" if note else ""
    values = config.model_dump(mode="json", by_alias=True)
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
