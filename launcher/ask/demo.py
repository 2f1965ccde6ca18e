"""The end of the demonstration: a few questions, answered before and after the training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.train.device.cpu import hide_gpus

# None of them is in the demonstration's data.
QUESTIONS = ("What is the capital of Portugal?", "Are you a robot?", "What is money?")
MOST_TOKENS = 16


def is_demo(config: LaunchConfig) -> bool:
    """Whether a run trains the demonstration's model on its data."""
    data = config.train.data
    return config.train.model == "demo" and [found.path for found in data.train_sets()] == ["demo"]


def before_and_after(run_folder: Path) -> Iterator[tuple[str, str, str]]:
    """Each question with the untrained base's answer and the published adapter's. An answer that was cut ends in `…`.

    Raises UserError or StoreError where the model cannot be loaded.
    """
    hide_gpus()
    from .answerer import Answerer, Sampling
    from .questions import conversation
    from .subject import open_subject

    with open_subject(run_folder, None, None) as subject:
        answerer = Answerer(subject)
    for question in QUESTIONS:
        answers = []
        for base in (True, False):
            pieces = answerer.answer(conversation([question]), Sampling(greedy=True, max_new_tokens=MOST_TOKENS), base)
            answers.append("".join(pieces) + ("" if answerer.ended else " …"))
        yield question, answers[0], answers[1]
