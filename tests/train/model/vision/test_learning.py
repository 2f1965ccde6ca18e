"""A tiny random model learns to name what pictures show, which their text does not tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.pictures.format import PictureFormat
from gemfleet.train.local.reporter import LocalReporter
from gemfleet.train.local.source import LocalBlockSource, prepare_local
from gemfleet.train.model.predict import Predictor, questions
from gemfleet.train.worker import run_training
from PIL import Image
from support.tiny_multimodal import save_tiny_multimodal, save_tiny_processor
from transformers import AutoTokenizer

KINDS = {"cat": (220, 30, 30), "dog": (30, 200, 30), "hat": (40, 40, 230), "sun": (230, 230, 30)}
TRAINED, SCORED = 10, 10  # pictures of each kind


def rows(folder: Path, seed: int, count: int, shown: bool) -> Iterator[dict[str, Any]]:
    """Noisy pictures of four colours, each with the same question, and the name of its colour as the answer."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        for kind, colour in KINDS.items():
            path = folder / f"{seed}-{kind}-{number}.png"
            noise = rng.integers(-30, 30, (32, 32, 3)) + np.array(colour)
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)
            parts: list[dict[str, str]] = [{"type": "image", "path": str(path)}] if shown else []
            asked = {"role": "user", "content": [*parts, {"type": "text", "text": "what is this"}]}
            yield {"messages": [asked, {"role": "assistant", "content": kind}]}


def accuracy(folder: Path, shown: bool) -> float:
    """The share of right answers after training, to pictures that were not trained on."""
    model = save_tiny_multimodal(folder / "model")
    save_tiny_processor(model)
    for name, seed, count in (("train", 0, TRAINED), ("eval", 1, SCORED)):
        lines = [json.dumps(row) for row in rows(folder, seed, count, shown)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    config = TrainConfig.model_validate(
        {
            "model": str(model),
            "data": {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl"), "max_length": 128},
            "batch": {"global": 20, "micro": 8},
            "optim": {"learning_rate": 0.01, "warmup_ratio": 0.1},
            "strategy": "ddp",
            "activation_checkpointing": "off",
            "epochs": 15.0,
            "precision": "fp32",
            "checkpoint": {"every": "never"},
            "evaluation": {"every": "never"},
        }
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    source = prepare_local(config.data, 20, 0, tokenizer, 1, pictures=PictureFormat.of(model))[0]
    with LocalReporter(folder / "run", 0, resume=False) as reporter:
        (folder / "work").mkdir()
        result = run_training(config, model, source, reporter, 0, 0, folder / "work")
        checkpoint = reporter.checkpoint_folder(result.steps)
    return right(Predictor(model, checkpoint, config, pictures=source), source, tokenizer)


def right(predictor: Predictor, source: LocalBlockSource, tokenizer: Any) -> float:
    asked = questions(source.eval_rows(0, "eval"), tokenizer, "no such text")
    answers = predictor.answer(asked, 6)
    assert len(answers) == 4 * SCORED
    return sum(answer.prediction == answer.reference for answer in answers) / len(answers)


@pytest.mark.slow
def test_pictures_tell_what_their_text_does_not(tmp_path: Path) -> None:
    assert not dist.is_initialized()
    (tmp_path / "seeing").mkdir()
    (tmp_path / "blind").mkdir()
    assert accuracy(tmp_path / "seeing", shown=True) > 0.95
    assert accuracy(tmp_path / "blind", shown=False) == pytest.approx(0.25)
