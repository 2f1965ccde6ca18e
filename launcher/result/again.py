"""What a result needs beside a checkpoint: kept in the run's folder as soon as it is known, and found again there.

So a run that failed after training is published later, without a cluster: the base comes from where the run had it, or
from its source.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemfleet.cluster.durable import write_durably
from gemfleet.launcher.config.load import load_config
from gemfleet.launcher.config.schema import LaunchConfig, OutputConfig
from gemfleet.launcher.runs.folder import RESOLVED_FILE, launch_folder
from gemfleet.launcher.sources.fetch import fetch_source
from gemfleet.train.checkpoint.lineage import base_digest
from gemfleet.train.checkpoint.state import CONFIG_FILE
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.errors import UserError
from gemfleet.train.model.resolve import resolve_model_folder

from .chosen import Picked
from .public_names import written_names
from .publish import KEPT_FILE, Publication, kept


def keep(run_folder: Path, facts: Mapping[str, Any]) -> None:
    """Add to what is kept of the run: `model`, `names` and `facts` of its `Publication`, and `predicted`, a step."""
    content = json.dumps({**kept(run_folder), **facts}, indent=2) + "\n"
    write_durably(run_folder / KEPT_FILE, content.encode())


def late_facts(steps: Sequence[Mapping[str, Any]], device: str | None, state: str) -> dict[str, Any]:
    """What the card says of how training went: its device, median tokens per second, and the run's state.

    steps: the records of all steps
    """
    rates = [record["tokens_per_second"] for record in steps]
    return {"device": device, "tokens_per_second": float(statistics.median(rates)) if rates else None, "state": state}


def publication_again(
    run_folder: Path, picked: Picked, late: Mapping[str, Any], model: str | None = None
) -> Publication:
    """The publication of a checkpoint, as the run itself would make it.

    late: see `late_facts`
    model: a folder or hub id of the base; None: where the run had it, or from its source
    Raises UserError where the base cannot be found or is another one than the checkpoint's.
    """
    config = load_config(run_folder / RESOLVED_FILE)
    made = adapter_publication(run_folder, picked.folder, model)
    refuse_another_base(made, picked.folder)
    known = kept(run_folder)
    facts = {**made.facts, **known.get("facts", {}), **late}
    names = {**made.names, **known.get("names", {})}
    return replace(made, base=config.train.model, output=config.output, facts=facts, names=names, picked=picked)


def adapter_publication(run_folder: Path, checkpoint: Path, model: str | None = None) -> Publication:
    """A checkpoint with its base. model: a folder or hub id of the base; None: see `base_of_run`"""
    config = load_config(run_folder / RESOLVED_FILE)
    train, asked = with_launch_paths(config, launch_folder(run_folder)).train, config.train
    names = written_names(train, train) | written_names(asked, asked)
    facts = {"format": train.data.format, "chat_template": train.data.chat_template}
    base = resolve_model_folder(model or base_of_run(run_folder))
    return Publication(run_folder, checkpoint, base, train.model, OutputConfig(), facts, names)


def base_of_run(run_folder: Path) -> str:
    """What names a run's base on this machine: the folder that the run had, or a copy of its remote source, else as
    the configuration names it, see `resolve_model_folder`."""
    had = kept(run_folder).get("model")
    if had is not None and Path(had).is_dir():
        return str(had)
    config = with_launch_paths(load_config(run_folder / RESOLVED_FILE), launch_folder(run_folder))
    return fetch_source(config.train.model, gemfleet_home() / "cache" / "repositories")


def with_launch_paths(config: LaunchConfig, launched: Path) -> LaunchConfig:
    """The configuration with paths as they are seen from the folder where the run was launched."""

    def found(source: str) -> str:
        return str(launched / source) if source != "demo" and (launched / source).exists() else source

    train = config.train
    data = train.data.with_paths({field: found(path) for field, path in train.data.paths().items()})
    return config.model_copy(
        update={"train": train.model_copy(update={"model": found(train.model), "data": data})},
    )


def refuse_another_base(publication: Publication, checkpoint: Path) -> None:
    """Raises UserError if the base's weights are not those that the checkpoint was trained on."""
    trained_on = json.loads((checkpoint / CONFIG_FILE).read_bytes()).get("made_from", {}).get("base")
    if trained_on and base_digest(publication.model_folder) != trained_on:
        raise UserError(
            f"the base in {publication.model_folder} has other weights than the one that {checkpoint.name} was trained "
            "on; give the folder of that one with --model"
        )
