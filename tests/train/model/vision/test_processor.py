"""From a file of rows with pictures to loss and gradients: as by transformers' own processor and class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gemfleet.train.config.sections.data import DataConfig
from gemfleet.train.data.pictures.format import PictureFormat
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.local.source import LocalBlockSource, prepare_local
from gemfleet.train.model.gemma import attach_lora, load_base_model
from gemfleet.train.model.vision.sight import load_sight
from PIL import Image
from support.reference_step import LORA, Gradients, fill_adapters, relative_difference
from support.tiny_multimodal import save_tiny_multimodal, save_tiny_processor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, Gemma3ForConditionalGeneration, Gemma3Processor

CPU = torch.device("cpu")
TOLERANCE = 1e-4
WORDS = ("what is this", "a cat", "the mat sat on the cat", "and then")
PICTURES = (0, 1, 3)  # in each chat


def chats(folder: Path) -> list[dict[str, Any]]:
    """A chat with each number of pictures, which lie beside the rows."""
    rng, names, rows = np.random.default_rng(0), iter(range(9)), []
    for count in PICTURES:
        parts: list[dict[str, str]] = [{"type": "text", "text": WORDS[count]}]
        for _ in range(count):
            path = folder / f"{next(names)}.png"
            Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
            parts += [{"type": "image", "path": str(path)}, {"type": "text", "text": WORDS[0]}]
        turns: list[Any] = [{"role": "user", "content": parts}]
        answer = {"role": "assistant", "content": [{"type": "text", "text": WORDS[1]}]}
        rows.append({"messages": [*turns, answer]})
    return rows


def reference(
    model: Path, processor: Gemma3Processor, rows: list[dict[str, Any]], labels: dict[int, torch.Tensor]
) -> tuple[float, Gradients]:
    """Mean loss and adapter gradients of one padded batch. labels: of each row, by its number of tokens"""
    from peft import LoraConfig, get_peft_model

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=LORA.r, lora_alpha=LORA.alpha, target_modules=names, exclude_modules=".*vision_tower.*")
    peft_model = get_peft_model(Gemma3ForConditionalGeneration.from_pretrained(model), config)
    fill_adapters(peft_model)
    batch = processor.apply_chat_template(
        [row["messages"] for row in rows],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "right"},
    )
    wanted = torch.full_like(batch["input_ids"], -100)
    for row, mask in enumerate(batch["attention_mask"]):
        own = labels[int(mask.sum())]
        wanted[row, : len(own)] = own
    logits = peft_model(**batch).logits[:, :-1]
    loss = cross_entropy(logits.flatten(0, 1), wanted[:, 1:].flatten())
    loss.backward()
    gradients = {name: p.grad for name, p in peft_model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients


def labels_of(rows: PackedRows) -> dict[int, torch.Tensor]:
    ends = np.cumsum(rows.document_lengths)
    flags = torch.from_numpy(np.where(rows.supervised, rows.tokens, -100).astype(np.int64))
    return {int(n): flags[end - n : end] for n, end in zip(rows.document_lengths.tolist(), ends.tolist(), strict=True)}


def source_of(folder: Path, model: Path, rows: list[dict[str, Any]], max_length: int) -> LocalBlockSource:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"train": str(folder / "rows.jsonl"), "eval_fraction": 0.0, "max_length": max_length}
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = DataConfig.model_validate(data)
    return prepare_local(config, 3, 0, tokenizer, 1, pictures=PictureFormat.of(model))[0]


@pytest.mark.parametrize("max_length", [256, 90], ids=["packed", "unpacked"])
def test_a_step_over_a_file_is_that_of_the_processor_and_the_class(tmp_path: Path, max_length: int) -> None:
    model = save_tiny_multimodal(tmp_path / "model")
    processor = save_tiny_processor(model)
    rows = chats(tmp_path)
    source = source_of(tmp_path, model, rows, max_length)
    step = source.step(0, 0, 0)
    assert (step.step_examples, len(step.rows.pictures), step.rows.row_count > 1) == (3, 4, max_length == 90)
    base = load_base_model(model, torch.float32, CPU)
    ours = attach_lora(base, LORA, 0, "tiny", sight=load_sight(model, source, torch.float32, CPU))
    fill_adapters(ours.peft_model)
    loss = ours.loss_sum(step.rows) / step.step_supervised_tokens
    loss.backward()
    expected_loss, expected = reference(model, processor, rows, labels_of(step.rows))
    assert float(loss.detach()) == pytest.approx(expected_loss, rel=TOLERANCE)
    gradients = {name: p.grad for name, p in ours.adapter_parameters().items() if p.grad is not None}
    assert relative_difference(gradients, expected) < TOLERANCE
