"""Reads and writes the configuration file of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from gemfleet.cluster.redaction import clean_text, redact
from gemfleet.train.config.load import beside, parse_yaml, read_mapping, validated
from gemfleet.train.config.precision import precision_note
from gemfleet.train.config.train_file import is_platform_request
from gemfleet.train.errors import UserError

from .platform.convert import Conversion, convert
from .schema import LaunchConfig

__all__ = ["dump_config", "load_config", "load_with_notes", "parse_yaml", "read_mapping", "refuse"]


def load_config(path: Path, overrides: Sequence[str] = ()) -> LaunchConfig:
    """The validated configuration, with paths relative to its file. UserError has a line for each problem."""
    return load_with_notes(path, overrides)[0]


def load_with_notes(path: Path, overrides: Sequence[str] = ()) -> tuple[LaunchConfig, tuple[str, ...]]:
    """As `load_config`, with notes for the person about how a platform's request was read."""
    raw = read_mapping(path)
    notes: tuple[str, ...] = ()
    if is_platform_request(raw):
        conversion = convert(raw)
        refuse(conversion, path)
        raw, notes = conversion.content, conversion.notes
    config = validated(raw, path, overrides, LaunchConfig)
    return config.model_copy(update={"train": beside(path, config.train)}), notes


def shown_config(text: str) -> str:
    """A kept configuration without secrets, as YAML."""
    try:
        return yaml.safe_dump(redact(parse_yaml(text)), sort_keys=False, allow_unicode=True, width=120)
    except (yaml.YAMLError, ValueError):  # a damaged one
        return clean_text(text)


def refuse(conversion: Conversion, path: Path) -> None:
    """Raise UserError with all problems of a request, if it has any."""
    if conversion.problems:
        count = "one problem" if len(conversion.problems) == 1 else f"{len(conversion.problems)} problems"
        raise UserError(f"{path} has {count}:\n" + "\n".join(f"  {line}" for line in conversion.problems))


def dump_config(config: LaunchConfig) -> str:
    """Every value spelled out, as YAML that `load_config` reads to an equal configuration.

    A comment at the top names a choice that the run carries out differently. `auto` stays `auto`, because each launch
    chooses anew.
    """
    note = precision_note(config.train.precision)
    head = f"# {note}\n" if note else ""
    values = config.model_dump(mode="json", by_alias=True)
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
