"""Answers about pictures, in batches, are those of transformers' own class to each question alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gemfleet.train.config.schema import Quantization, TrainConfig
from gemfleet.train.data.packing import pack_block
from gemfleet.train.model.predict import Predictor, Question, questions
from support.picture_steps import Pictures, examples_with_pictures, normalised, padded, picture_count
from support.tiny_multimodal import save_tiny_multimodal
from support.tiny_tokenizer import tiny_tokenizer
from transformers import Gemma3ForConditionalGeneration

CONFIG = {"model": "x", "data": {"train": "x"}, "precision": "fp32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_multimodal(tmp_path_factory.mktemp("multimodal"))
    tiny_tokenizer(folder)
    return folder


def asked_in(folder: Path) -> list[Question]:
    """Two questions with a picture and one with three, of different lengths."""
    block = examples_with_pictures().select([1, 2, 4])
    block.supervised[:] = False
    block.supervised[block.offsets[1:] - 1] = True
    return questions(pack_block(block, 64), tiny_tokenizer(folder), "no such text")


def test_a_batch_equals_each_alone_by_the_original_class(folder: Path) -> None:
    pictures, asked = Pictures(picture_count()), asked_in(folder)
    predictor = Predictor(folder, None, TrainConfig.model_validate(CONFIG), pictures=pictures)
    answers = [prediction.prediction for prediction in predictor.answer(asked, 8)]
    original = Gemma3ForConditionalGeneration.from_pretrained(folder).eval()
    for question, answer in zip(asked, answers, strict=True):
        (row,) = [n for n in (1, 2, 4) if len(question.prompt) + 1 == int(examples_with_pictures().lengths[n])]
        batch = padded(examples_with_pictures().select([row]))
        inputs = {name: batch[name][:, :-1] for name in ("input_ids", "attention_mask", "token_type_ids")}
        pixels = normalised(pictures, np.array(question.pictures))
        output = original.generate(**inputs, pixel_values=pixels, max_new_tokens=8, do_sample=False, pad_token_id=0)
        assert answer == predictor._text(output[0, len(question.prompt) :].tolist())
    changed = Pictures(picture_count(), seed=1)
    others = Predictor(folder, None, TrainConfig.model_validate(CONFIG), pictures=changed).answer(asked, 8)
    assert [other.prediction for other in others] != answers


@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_a_quantised_base_answers_too(folder: Path, quantization: Quantization) -> None:
    config = TrainConfig.model_validate({**CONFIG, "quantization": quantization})
    predictor = Predictor(folder, None, config, pictures=Pictures(picture_count()))
    assert {p.dtype for p in predictor.model.model.vision_tower.parameters()} == {torch.float32}
    assert len(predictor.answer(asked_in(folder), 4)) == 3
