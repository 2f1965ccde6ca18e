"""Examples with pictures for `tiny_multimodal`, and the step over them as plain transformers and peft do it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from gemfleet.train.data.packing import TokenBlock
from gemfleet.train.interfaces import Ints, Pixels
from gemfleet.train.local.source import LocalBlockSource
from gemfleet.train.model.vision.kept import FeatureFolder
from gemfleet.train.worker import run_training
from support.reference_step import LORA, VOCABULARY, Gradients, fill_adapters
from support.strategy_cases import FolderReporter, strategy_config
from support.tiny_multimodal import SIDE, TOKENS
from torch.nn.functional import cross_entropy
from transformers import Gemma3ForConditionalGeneration


@dataclass(frozen=True)
class Seen:
    """What rank 0 recorded of a run, by step; elsewhere nothing."""

    losses: list[float]
    grad_norms: list[float]
    evaluations: list[float]
    pictures: list[int]
    tower_flops: list[float]
    towered: list[int]  # ids of the pictures that its tower saw


SOFT_TOKENS, IMAGE = TOKENS, 9  # as in tiny_multimodal
# Tokens of text before, between and after an example's pictures: none, one or three of them, some beyond the window.
TEXTS = ((20,), (3, 5), (2, 2, 2, 9), (11,), (1, 30), (6, 1, 12, 4))

DIVIDE_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "recomputed": {"strategy": "ddp", "activation_checkpointing": "full"},
    "fsdp2": {"strategy": "fsdp2"},
    "zero-2": {"strategy": "deepspeed", "deepspeed": {"stage": 2}},
    "zero-3": {"strategy": "deepspeed", "deepspeed": {"stage": 3, "config": DIVIDE_ALL}},
}


class Pictures:
    """A `PictureSource` of random pictures, whose ids are 100, 101, …"""

    def __init__(self, count: int, seed: int = 0) -> None:
        self._pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, SIDE, SIDE)).astype(np.uint8)
        self.asked: list[int] = []

    @property
    def pictures(self) -> Ints:
        return np.arange(100, 100 + len(self._pixels))

    def pixels(self, ids: Ints) -> Pixels:
        self.asked += ids.tolist()
        return self._pixels[ids - 100]

    def change(self, identity: int) -> None:
        self._pixels[identity - 100] = 255 - self._pixels[identity - 100]


def examples_with_pictures(seed: int = 0) -> TokenBlock:
    """One example for each of `TEXTS`. Each picture is another one; about half of the text is supervised."""
    rng = np.random.default_rng(seed)
    parts, flags, ends, starts = [], [], [0], []
    for texts in TEXTS:
        own = [rng.integers(10, VOCABULARY, texts[0])]
        for text in texts[1:]:
            starts.append(ends[-1] + sum(map(len, own)))
            own += [np.full(SOFT_TOKENS, IMAGE), rng.integers(10, VOCABULARY, text)]
        tokens = np.concatenate(own).astype(np.int32)
        supervised = (rng.random(len(tokens)) > 0.5) & (tokens != IMAGE)
        supervised[0], supervised[-1] = False, True
        parts.append(tokens)
        flags.append(supervised)
        ends.append(ends[-1] + len(tokens))
    pictures = 100 + np.arange(len(starts))
    return TokenBlock(np.concatenate(parts), np.concatenate(flags), np.array(ends), pictures, np.array(starts))


def picture_count() -> int:
    return sum(len(texts) - 1 for texts in TEXTS)


def reference_with_pictures(folder: Path, pictures: Pictures, block: TokenBlock) -> tuple[float, Gradients]:
    """Mean loss and adapter gradients of one padded batch through the original class, with nothing of gemfleet."""
    from peft import LoraConfig, get_peft_model

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=LORA.r, lora_alpha=LORA.alpha, target_modules=names, exclude_modules=".*vision_tower.*")
    model = get_peft_model(Gemma3ForConditionalGeneration.from_pretrained(folder), config)
    fill_adapters(model)
    batch = padded(block)
    labels = batch.pop("labels")
    logits = model(**batch, pixel_values=normalised(pictures, block.pictures)).logits
    loss = cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1))
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def padded(block: TokenBlock) -> dict[str, Any]:
    """The examples as one batch for transformers, padded on the right."""
    shape = len(block), int(block.lengths.max())
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for row, (start, end) in enumerate(zip(block.offsets[:-1], block.offsets[1:], strict=True)):
        tokens = torch.from_numpy(block.tokens[start:end]).long()
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        labels[row, : len(tokens)] = torch.where(torch.from_numpy(block.supervised[start:end]), tokens, -100)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": (ids == IMAGE).long(), "labels": labels}


def normalised(pictures: Pictures, ids: Ints) -> torch.Tensor:
    return torch.from_numpy(pictures.pixels(ids)).float() / 255 * 2 - 1


class Examples(LocalBlockSource):
    """The examples with pictures as the source of a run: two steps an epoch, and two examples are evaluated."""

    def __init__(self, world_size: int) -> None:
        block = examples_with_pictures()
        super().__init__(
            block, {"eval": block.select([1, 2])}, global_batch=3, max_length=64, seed=1, world_size=world_size
        )
        self.shown = Pictures(picture_count())

    @property
    def pictures(self) -> Ints:
        return self.shown.pictures

    def pixels(self, ids: Ints) -> Pixels:
        return self.shown.pixels(ids)


def train_with_pictures(model_folder: str, folder: str, changes: dict[str, Any]) -> Seen:
    """A whole run in the process group that is up, from the newest checkpoint below `folder`. Collective."""
    config = strategy_config(model=model_folder, **{"max_steps": 6, "checkpoint": {"every": 3}, **changes})
    head = config.vision.cache == "head"
    keeper = FeatureFolder(Path(folder).parent / "features", config.vision.head_cache_bytes) if head else None
    rank = dist.get_rank()
    work = Path(folder) / f"work-{rank}"
    work.mkdir(parents=True)
    reporter = FolderReporter(Path(folder))
    source = Examples(dist.get_world_size())
    run_training(config, Path(model_folder), source, reporter, rank, rank, work, features=keeper)
    steps = [record for record in reporter.records if record["kind"] == "step"]
    return Seen(
        [record["loss"] for record in steps],
        [record["grad_norm"] for record in steps],
        [record["eval_loss"] for record in reporter.records if record["kind"] == "eval"],
        [record["pictures"] for record in steps],
        [record["tower_flops"] for record in steps],
        source.shown.asked,
    )
