"""Finds whom to ask: the adapter of a run, of one of its checkpoints or of a folder, and its base model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from gemfleet.launcher.result.again import base_of_run
from gemfleet.launcher.result.chosen import asked_checkpoint, pick
from gemfleet.launcher.result.prompt_format import PromptFormat, kept_format
from gemfleet.launcher.runs.checkpoints import shelf_of
from gemfleet.launcher.runs.folder import RESOLVED_FILE
from gemfleet.launcher.sources.fetch import is_remote
from gemfleet.train.checkpoint.state import ADAPTER_FILE, CONFIG_FILE
from gemfleet.train.config.schema import Quantization
from gemfleet.train.errors import UserError
from gemfleet.train.model.resolve import resolve_model_folder
from gemfleet.train.model.starting_adapter import ADAPTER_CONFIG_FILE
from gemfleet.train.model.weight_files import refuse_pointer

FRONT_MATTER = "---\n"


@dataclass(frozen=True)
class Subject:
    """An adapter and what is needed to ask it.

    name:     of the run or folder, and the step
    base:     the folder of the base model; adapter: a folder in PEFT's layout, perhaps with tokenizer and ends
    prompts:  how prompts are written; None: as the tokenizer's template says, if it has one
    template: `train.data.chat_template` of its training; None: it was not trained by gemfleet
    """

    name: str
    base: Path
    adapter: Path
    prompts: PromptFormat | None = None
    template: str | None = None
    quantization: Quantization = "none"


@contextmanager
def open_subject(folder: Path, step: str | None, model: str | None) -> Iterator[Subject]:
    """The subject, whose files stay while the block runs.

    folder: of a run, or of an adapter; model: the base, None: the one that the training names
    step:   of a run: a number, `best` or `last`, see `pick`; None: the published step, else the last
    Raises UserError or StoreError for a checkpoint or a base that is not there.
    """
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        if step is not None:
            raise UserError(f"--step is {step}, but {folder} is one adapter; leave it out, or name a run")
        yield _subject(folder.resolve().name, folder, model or _base_of_adapter(folder), _card_format(folder))
        return
    if not (folder / RESOLVED_FILE).is_file():
        raise UserError(f"{folder} is neither the folder of a run nor an adapter: it has no {ADAPTER_CONFIG_FILE}")
    base, prompts, published = model or base_of_run(folder), kept_format(folder), folder / "output"
    if step is None and (published / ADAPTER_CONFIG_FILE).is_file():
        yield _subject(f"{folder.name}, step {_step_of(published)}", published, base, prompts)
        return
    with shelf_of(folder) as shelf:
        picked, _ = pick(shelf, "last" if step is None else asked_checkpoint(step))
        yield _subject(f"{folder.name}, step {picked.chosen.step}", picked.folder, base, prompts)


def _subject(name: str, adapter: Path, base: str, prompts: PromptFormat | None) -> Subject:
    if not (adapter / ADAPTER_FILE).is_file():
        raise UserError(f"{adapter} has no {ADAPTER_FILE}; give the folder of an adapter in safetensors")
    refuse_pointer(adapter / ADAPTER_FILE)
    try:
        folder = resolve_model_folder(base)
    except UserError as error:
        raise UserError(f"the base model of {name} is not here ({error}); name its folder by --model") from error
    train = _read(adapter / CONFIG_FILE).get("train", {})
    template = train.get("data", {}).get("chat_template")
    return Subject(name, folder, adapter, prompts, template, train.get("quantization", "none"))


def _base_of_adapter(adapter: Path) -> str:
    """The base that an adapter's own files name: `demo`, a folder beside it or here, or a hub id."""
    if _read(adapter / CONFIG_FILE).get("train", {}).get("model") == "demo":
        return "demo"
    named = str(_read(adapter / ADAPTER_CONFIG_FILE).get("base_model_name_or_path") or "")
    if not named or is_remote(named):
        raise UserError(f"{adapter} names {named or 'no base'!r} as its base; copy it here and name it by --model")
    near = [place / named for place in (adapter, adapter.resolve().parent) if (place / named / "config.json").is_file()]
    return str(near[0]) if near else named


def _card_format(adapter: Path) -> PromptFormat | None:
    """The format of prompts in the card of a published folder; None if it does not say."""
    try:
        text = (adapter / "README.md").read_text(encoding="utf-8")
        front = yaml.safe_load(text.split(FRONT_MATTER)[1]) if text.startswith(FRONT_MATTER) else {}
        prompts = front["prompts"]
        return PromptFormat(bool(prompts["turns"]), str(prompts["ending"]))
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError):
        return None


def _step_of(published: Path) -> str:
    """The step of a published adapter. Its trainer_state.json has the history of the whole run, so it may end later."""
    return next((folder.name.removeprefix("checkpoint-") for folder in published.glob("checkpoint-*")), "0")


def _read(path: Path) -> dict[str, Any]:
    """The content of a JSON file, empty if there is no such file. Raises UserError for one that is damaged."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings; fetch it again")
    return content
