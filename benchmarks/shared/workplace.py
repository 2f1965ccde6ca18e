"""A user's folder with a tiny model, a tokenizer of bytes, and rows, for suites that start whole runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from .models import model_folder

ROWS = 256
GLOBAL_BATCH = 4
WORKERS = 2
STEPS_PER_EPOCH = ROWS // GLOBAL_BATCH


def make_workplace(folder: Path, address: str, name: str, epochs: float, save_every: int | None = None) -> Path:
    """The configuration file. Its run uses `WORKERS` ranks of the Ray cluster at `address`.

    save_every: steps between checkpoints; None: there are none
    """
    # A link would be refused: the folder is staged to nodes.
    shutil.copytree(model_folder("tiny", None), folder / "model")
    save_byte_tokenizer(folder / "model")
    rows = [{"prompt": f"question {i}? ", "completion": f"answer {i % 7}"} for i in range(ROWS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": name,
        "train": {
            "model": "./model",
            "data": {"train": "rows.jsonl", "max_length": 128, "eval_fraction": 0.0},
            "batch": {"global": GLOBAL_BATCH, "micro": 1},
            "strategy": "ddp",
            "activation_checkpointing": "off",
            "epochs": epochs,
            "precision": "fp32",
            "checkpoint": {"every": save_every or "never"},
        },
        "cluster": {"address": address, "workers": WORKERS},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def save_byte_tokenizer(folder: Path) -> None:
    """One token for each byte, and Gemma's control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
