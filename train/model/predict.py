"""Answers the prompts of an evaluation set: one process generates greedily, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config.schema import TrainConfig
from ..data.pictures.format import PictureFormat
from ..data.templates.rendered import answer_end
from ..device.abilities import choose_dtype, current_device
from ..interfaces import PackedRows
from .base_check import load_tokenizer
from .gemma import load_base_model
from .vision.features import PictureSource
from .vision.tower import format_of, give_eyes, give_eyes_if_trained, normalised


@dataclass(frozen=True)
class Question:
    """The token ids of one example. `<bos>` is part of the prompt; `<eos>` is part of neither field.

    pictures: the ids of the pictures in the prompt, in order; picture_starts: the tokens at which they begin
    """

    prompt: tuple[int, ...]
    reference: tuple[int, ...]
    pictures: tuple[int, ...] = ()
    picture_starts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """A line of predictions.jsonl."""

    prompt: str
    reference: str
    prediction: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def questions(rows: PackedRows, tokenizer: Any, answer_after: str) -> list[Question]:
    """Each document of the packed rows as a question, in their order.

    What comes before the last supervised part is the prompt. A text that is supervised from its start is split after
    the last `answer_after`, or in the middle if it has none. Documents without an answer are left out.
    """
    found = []
    marker = tuple(tokenizer(answer_after, add_special_tokens=False)["input_ids"])
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")}
    for first, tokens, supervised in _documents(rows):
        end = len(supervised) - supervised[::-1].index(True)
        start = _answer_start(tokens, supervised, end, marker)
        reference = list(tokens[start:end])
        while reference and reference[-1] in ends:
            reference.pop()
        if reference:
            shown = slice(*np.searchsorted(rows.picture_starts, [first, first + start]))
            pictures, starts = rows.pictures[shown].tolist(), (rows.picture_starts[shown] - first).tolist()
            found.append(Question(tokens[:start], tuple(reference), tuple(pictures), tuple(starts)))
    return found


def _documents(rows: PackedRows) -> Iterator[tuple[int, tuple[int, ...], tuple[bool, ...]]]:
    """The place, the tokens and the supervision of each document."""
    start = 0
    for length in rows.document_lengths.tolist():
        part = slice(start, start + length)
        yield start, tuple(rows.tokens[part].tolist()), tuple(rows.supervised[part].tolist())
        start += length


def _answer_start(tokens: Sequence[int], supervised: Sequence[bool], end: int, marker: Sequence[int]) -> int:
    """The index of the answer's first token, at least 1. end: where the last supervised part ends"""
    start = end
    while start > 0 and supervised[start - 1]:
        start -= 1
    if start > 1:
        return start
    for index in range(len(tokens) - len(marker), 0, -1):
        if marker and tuple(tokens[index : index + len(marker)]) == tuple(marker):
            return index + len(marker)
    return max(1, (len(tokens) + 1) // 2)


def picture_inputs(
    batch: Sequence[Question],
    starts: Sequence[int],
    ids: torch.Tensor,
    source: PictureSource,
    shown: PictureFormat,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """What a whole model is given besides tokens, for questions with pictures; empty where none has one.

    starts: the column of `ids` at which each prompt begins
    """
    pictures = [identity for question in batch for identity in question.pictures]
    if not pictures:
        return {}
    types = torch.zeros_like(ids)
    for row, (question, begin) in enumerate(zip(batch, starts, strict=True)):
        for place in question.picture_starts:
            types[row, begin + place : begin + place + shown.count] = 1
    pixels = torch.from_numpy(source.pixels(np.array(pictures, np.int64))).to(ids.device)
    return {"token_type_ids": types, "pixel_values": normalised(pixels, shown).to(dtype)}


class Predictor:
    """The base model, with a trained adapter or without one, on this process's device."""

    def __init__(
        self,
        model_folder: Path,
        adapter_folder: Path | None,
        config: TrainConfig,
        local_rank: int = 0,
        pictures: PictureSource | None = None,
    ) -> None:
        """pictures: those of the questions; None, or a source without any: the model is loaded without its eyes"""
        from peft import PeftModel

        facts = current_device(local_rank)
        dtype = choose_dtype(config.precision, facts)
        base = load_base_model(model_folder, dtype, facts.device, config.quantization)
        self._pictures = None
        if pictures is not None and len(pictures.pictures):
            self._pictures, self._shown = pictures, format_of(model_folder)
            give_eyes(base, model_folder, dtype)
        elif adapter_folder is not None:
            give_eyes_if_trained(base, model_folder, adapter_folder, dtype)
        adapted = base if adapter_folder is None else PeftModel.from_pretrained(base, str(adapter_folder))
        self.model = adapted.eval()
        self.tokenizer = load_tokenizer(model_folder)
        self.device = facts.device
        self._end = answer_end(self.tokenizer, config.data.chat_template)

    @torch.inference_mode()
    def answer(self, batch: Sequence[Question], max_new_tokens: int) -> list[Prediction]:
        """Greedy continuations of the prompts. They are padded on the left, so each continues at its end."""
        longest = max(len(question.prompt) for question in batch)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        ids = torch.full((len(batch), longest), pad, device=self.device)
        mask = torch.zeros_like(ids)
        for row, question in enumerate(batch):
            ids[row, longest - len(question.prompt) :] = torch.tensor(question.prompt, device=self.device)
            mask[row, longest - len(question.prompt) :] = 1
        seen: dict[str, torch.Tensor] = {}
        if self._pictures is not None:
            starts = [longest - len(question.prompt) for question in batch]
            seen = picture_inputs(batch, starts, ids, self._pictures, self._shown, self.model.dtype)
        stops = [self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids("<end_of_turn>")]
        end = self.tokenizer(self._end, add_special_tokens=False)["input_ids"]
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            **seen,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            top_k=None,
            top_p=None,
            pad_token_id=pad,
            eos_token_id=[stop for stop in stops if stop is not None and stop != self.tokenizer.unk_token_id]
            + (end if len(end) == 1 else []),
            **({"stop_strings": [self._end], "tokenizer": self.tokenizer} if len(end) > 1 else {}),
        )
        return [
            Prediction(self._text(question.prompt), self._text(question.reference), self._text(new))
            for question, new in zip(batch, output[:, longest:].tolist(), strict=True)
        ]

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip().removesuffix(self._end).strip()
