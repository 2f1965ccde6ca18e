"""Publishes the result of a run that trains nothing: how well the base model does on the evaluation set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemfleet.train.config.schema import TrainConfig

from .public_names import public_name
from .publish import copy_request, output_folder, write_attributes


def publish_evaluation(run_folder: Path, asked: TrainConfig, facts: Mapping[str, Any]) -> Path:
    """Write metrics, answers, the request and a card into `<run folder>/output`. Returns that folder.

    facts: `data` and `data_report`, as on a model card
    """
    with output_folder(run_folder) as folder:
        shutil.copytree(run_folder / "predictions", folder, dirs_exist_ok=True)
        copy_request(run_folder, folder)
        write_attributes(folder)
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "README.md").write_text(evaluation_card(asked.model, metrics, facts), encoding="utf-8")
    return run_folder / "output"


def evaluation_card(model: str, metrics: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The text of README.md: which model was scored on which data, and its metrics."""
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in metrics.items())
    return (
        f"# How `{public_name(model)}` does on `{facts['data']}`\n\n"
        "Nothing was trained: the base model alone was scored on the evaluation set."
        f"\n\n{facts['data_report']}\n\n| metric | value |\n|---|---|\n{rows}\n"
    )
