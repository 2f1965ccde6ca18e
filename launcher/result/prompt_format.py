"""How a run's data write a prompt: in turns, or as a text with a certain ending. `gemfleet ask` does the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gemfleet.launcher.data_view.view import DataView, Example
from gemfleet.launcher.runs.folder import DATA_FILE
from gemfleet.train.data.shapes.choice import CHATS
from pydantic import ValidationError

IN_TURNS = re.compile(r"(<bos>)?<start_of_turn>user\n")


@dataclass(frozen=True)
class PromptFormat:
    """How a prompt is written.

    turns:  whether it is a chat
    ending: white space that ends each prompt of other rows
    """

    turns: bool
    ending: str = ""


def kept_format(run_folder: Path) -> PromptFormat | None:
    """The format of a run's prompts, by the description of its data; None if the run's folder has none."""
    try:
        return format_of(DataView.model_validate_json((run_folder / DATA_FILE).read_bytes()))
    except (OSError, ValidationError):
        return None


def format_of(view: DataView) -> PromptFormat | None:
    """The format of the prompts that a description shows. Texts that hold Gemma's turns are chats, too."""
    trained = [found for found in view.sets if found.use == "train"]
    if not trained:
        return None
    texts = ["".join(span.text for span in example.spans) for example in view.examples]
    written = bool(texts) and all(map(IN_TURNS.match, texts))
    return PromptFormat(written or trained[0].format in CHATS, _common_ending(view.examples))


def _common_ending(examples: list[Example]) -> str:
    """The longest white space that ends the prompts of all examples."""
    prompts = [example.spans[0].text for example in examples if len(example.spans) > 1]
    first = prompts[0][len(prompts[0].rstrip()) :] if prompts else ""
    ends = (first[start:] for start in range(len(first)))
    return next((end for end in ends if all(prompt.endswith(end) for prompt in prompts)), "")
