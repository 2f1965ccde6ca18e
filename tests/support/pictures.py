"""Made pictures, and rows that have them, for a tiny base that sees."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from gemfleet.train.config.sections.data import DataConfig
from gemfleet.train.data.pictures.format import PictureFormat
from gemfleet.train.data.prepared.store import PreparedCache
from gemfleet.train.data.report import DataReport
from gemfleet.train.local.source import LocalBlockSource, prepare_local
from PIL import Image
from support.tiny_multimodal import save_tiny_multimodal, save_tiny_processor
from transformers import AutoTokenizer

QUESTION = "what is the answer to the question"


def seeing_model(folder: Path) -> Path:
    """A folder with a tiny base that sees, its tokenizer and its processor."""
    save_tiny_processor(folder)
    return save_tiny_multimodal(folder)


def picture(seed: int, size: tuple[int, int] = (70, 40)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 5, size[0] // 5, 3), np.uint8)
    return Image.fromarray(noise).resize(size)


def save_pictures(folder: Path, count: int = 3) -> list[str]:
    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        picture(number, (70 + number, 40)).save(folder / name)
    return names


def chat(*said: Any) -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(said)]
    return {"messages": turns}


def prepared(
    path: Path, model: Path, cache: PreparedCache | None = None, **options: Any
) -> tuple[LocalBlockSource, DataReport]:
    data = DataConfig.model_validate({"train": str(path), "eval_fraction": 0.0, "max_length": 256} | options)
    tokenizer, sees = AutoTokenizer.from_pretrained(model), PictureFormat.of(model)
    return prepare_local(data, 100, 0, tokenizer, 1, cache=cache, pictures=sees)


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
