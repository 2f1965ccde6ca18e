"""Compares what is published with what was trained: the same prompts through the loop's forward and through each form.

A form is a way in which a stranger loads the result: the base with the adapter by peft, or the merged model. One model
is in memory at a time. The adapter answers greedily first. The loop then scores that answer in one packed pass, which
says what it would have answered: a greedy answer is the loop's own as long as each of its tokens is the loop's best.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.schema import Quantization, TrainConfig
from ..data.pictures.format import PictureFormat
from ..device.abilities import DeviceFacts, choose_dtype, current_device
from ..interfaces import PackedRows
from ..quiet import without_bars
from .base_check import gemma_config
from .comparison import BOUNDS, Comparison, Scored, Tokens, beside
from .gemma import TrainableModel, attach_lora, load_base_model
from .predict import Question, picture_inputs
from .starting_adapter import ADAPTER_FILE, saved_name
from .vision.features import PictureSource
from .vision.sight import load_sight
from .vision.tower import format_of, give_eyes, give_eyes_if_trained
from .weight_files import stored_tensors

BATCH = 8  # prompts that are answered at once
ANSWER_TOKENS = 32  # of a greedy answer; logits are compared where the last so many tokens are predicted
PROMPT_TOKENS = 1024  # a longer prompt is compared by its beginning; Gemma 3's window has 512 or 1,024 tokens


@without_bars()
def compare_published(
    base: Path,
    trained: Path,
    published: Path,
    merged: Path | None,
    config: TrainConfig,
    prompts: Sequence[Question],
    source: str,
    local_rank: int = 0,
    pictures: PictureSource | None = None,
) -> Comparison:
    """Compares the published forms with the training loop on these prompts. pictures: those of the prompts

    base: the checked model folder; trained: the checkpoint; published: the folder of the adapter; merged: None: no such
    source: what the prompts are from, in words
    Raises what loading raises, and an error of `is_out_of_memory` where a model does not fit.
    """
    facts = current_device(local_rank)
    dtype = choose_dtype(config.precision, facts)
    shown = None
    if pictures is not None and any(prompt.pictures for prompt in prompts):
        shown = Shown(pictures, format_of(base), dtype)
    asked = [shortened(prompt, 0 if shown is None else shown.form.count) for prompt in prompts]
    model, other = load_published(base, published, dtype, facts.device, config.quantization, shown is not None)
    adapter = scored_by(model, asked, shown)
    del model
    texts = [question.prompt + answer for question, answer in zip(asked, adapter.answers, strict=True)]
    loop = loop_logits(base, trained, config, facts, texts, asked, shown)
    forms = [beside("adapter", adapter, adapter.answers, loop, BOUNDS[dtype])]
    if merged is not None:
        _free()
        bound = None if config.quantization != "none" else max(BOUNDS[dtype], BOUNDS[stored_dtype(merged)])
        scored = scored_by(_loaded(merged, dtype, facts.device).eval(), asked, shown, texts)
        forms.append(beside("merged", scored, adapter.answers, loop, bound))
    tokens = sum(map(len, texts)) - sum(len(question.prompt) for question in asked)
    return Comparison(len(asked), source, tokens, str(dtype).removeprefix("torch."), tuple(forms), other)


@dataclass(frozen=True)
class Shown:
    """The pictures of prompts, and how a model is given them."""

    source: PictureSource
    form: PictureFormat
    dtype: torch.dtype

    def beside(self, asked: Sequence[Question], starts: Sequence[int], ids: Tensor) -> dict[str, Tensor]:
        return picture_inputs(asked, starts, ids, self.source, self.form, self.dtype)


def shortened(question: Question, soft_tokens: int) -> Question:
    """The beginning of a long prompt, with whole pictures."""
    cut = [start for start in question.picture_starts if start < PROMPT_TOKENS < start + soft_tokens]
    end = min([PROMPT_TOKENS, *cut])
    starts = tuple(start for start in question.picture_starts if start < end)
    return Question(question.prompt[:end], question.reference, question.pictures[: len(starts)], starts)


def load_published(
    base: Path,
    published: Path,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization,
    sees: bool = False,
) -> tuple[Any, str]:
    """The base with the published adapter, as the card's code loads it, and a sentence if peft took another adapter.

    A quantised base is loaded as in training.
    """
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import GenerationConfig

    if quantization == "none":
        model = _loaded(base, dtype, device)
    else:
        model = load_base_model(base, dtype, device, quantization)
        if sees:
            give_eyes(model, base, dtype)
        else:
            give_eyes_if_trained(model, base, published, dtype)
    model.generation_config = GenerationConfig.from_pretrained(published)
    model = PeftModel.from_pretrained(model, str(published)).eval()
    trained = (".lora_", ".modules_to_save.")
    loaded = {saved_name(n): p for n, p in model.named_parameters() if any(part in n for part in trained)}
    return model, _unlike(load_file(published / ADAPTER_FILE), loaded)


def _unlike(written: dict[str, Tensor], loaded: dict[str, Any]) -> str:
    unknown, missing = sorted(set(written) - set(loaded)), sorted(set(loaded) - set(written))
    changed = [
        name for name in sorted(set(written) & set(loaded)) if not written[name].equal(loaded[name].cpu().float())
    ]
    for names, what in (
        (unknown, "that peft finds no module for"),
        (missing, "less than peft looks for"),
        (changed, "that peft loads with other values"),
    ):
        if names:
            return f"the published adapter has {len(names)} of {len(loaded)} tensors {what}, the first is {names[0]}"
    return ""


def _loaded(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """A whole model by transformers, also with its vision tower."""
    from transformers import AutoModelForCausalLM

    config = gemma_config(folder)
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype, use_safetensors=True).to(device)


def _free() -> None:
    """Gives back the memory of the model before."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def stored_dtype(folder: Path) -> torch.dtype:
    """The coarsest kind of numbers among a model's weights."""
    kinds = {tensor.dtype for tensor in stored_tensors(folder).values()}
    return torch.bfloat16 if "BF16" in kinds else torch.float16 if "F16" in kinds else torch.float32


@torch.inference_mode()
def scored_by(
    model: Any, asked: Sequence[Question], shown: Shown | None = None, texts: Sequence[Tokens] | None = None
) -> Scored:
    """The greedy answers of a model as transformers generates them, and its logits on `texts`.

    texts: each prompt with an answer; None: with this model's own
    """
    batches = [asked[first : first + BATCH] for first in range(0, len(asked), BATCH)]
    answers = [answer for batch in batches for answer in _answers(model, batch, shown)]
    texts = [one.prompt + answer for one, answer in zip(asked, answers, strict=True)] if texts is None else texts
    logits = []
    for question, text in zip(asked, texts, strict=True):
        ids = torch.tensor([text], device=model.device)
        seen = {} if shown is None else shown.beside([question], [0], ids)
        rows = model(input_ids=ids, **seen, logits_to_keep=compared(text) + 1, use_cache=False).logits[0, :-1]
        logits.append(rows.float().cpu())
    return Scored(answers, logits)


def _answers(model: Any, asked: Sequence[Question], shown: Shown | None) -> list[Tokens]:
    """The greedy answers to a batch of prompts, each to its end. Prompts are padded on the left."""
    longest = max(len(question.prompt) for question in asked)
    starts = [longest - len(question.prompt) for question in asked]
    ids = torch.zeros((len(asked), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (question, start) in enumerate(zip(asked, starts, strict=True)):
        ids[row, start:] = torch.tensor(question.prompt)
        mask[row, start:] = 1
    ids = ids.to(model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask.to(model.device),
        **({} if shown is None else shown.beside(asked, starts, ids)),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        top_k=None,
        top_p=None,
        pad_token_id=0,
    )
    ends = model.generation_config.eos_token_id
    stops = set(ends if isinstance(ends, list) else [ends])
    return [_to_its_end(row, stops) for row in output[:, longest:].tolist()]


def _to_its_end(tokens: Sequence[int], stops: set[int | None]) -> Tokens:
    end = next((at + 1 for at, token in enumerate(tokens) if token in stops), len(tokens))
    return tuple(tokens[:end])


def compared(text: Tokens) -> int:
    """How many tokens of a text are predicted where logits are compared: its last ones, with the whole answer."""
    return min(ANSWER_TOKENS, len(text) - 1)


@torch.inference_mode()
def loop_logits(
    base: Path,
    trained: Path,
    config: TrainConfig,
    facts: DeviceFacts,
    texts: Sequence[Tokens],
    asked: Sequence[Question],
    shown: Shown | None,
) -> list[Tensor]:
    """The logits of the training loop where the last tokens of each text are predicted: fp32 [tokens, vocabulary] each.

    All texts are documents of one packed pass, as in training. asked: the questions that they begin with
    """
    _free()
    dtype = choose_dtype(config.precision, facts)
    model = load_base_model(base, dtype, facts.device, config.quantization)
    learns = config.vision.train == "projector"
    sight = None if shown is None else load_sight(base, shown.source, dtype, facts.device, learns)
    trainable = attach_lora(model, config.lora, config.seed, str(base), trained, sight=sight)
    if sight is not None and learns:
        _load_projector(trainable, trained)
    trainable.peft_model.eval()
    counts = [compared(text) for text in texts]
    rows = _packed(texts, counts, asked if sight is not None else ())
    inputs = trainable.inputs_of(rows)
    hidden = trainable.hidden_states(inputs).index_select(0, inputs.predicting)
    return [trainable.criterion.logits(part).cpu() for part in hidden.split(counts)]


def _packed(texts: Sequence[Tokens], counts: Sequence[int], asked: Sequence[Question]) -> PackedRows:
    """One row of all texts, with the last `counts` tokens of each to predict. asked: those with their pictures"""
    supervised = [np.arange(len(text)) >= len(text) - count for text, count in zip(texts, counts, strict=True)]
    lengths = np.array([len(text) for text in texts], np.int32)
    begins = (np.cumsum(lengths) - lengths).tolist()
    starts = [begin + start for begin, one in zip(begins, asked, strict=False) for start in one.picture_starts]
    return PackedRows(
        np.concatenate([np.array(text, np.int32) for text in texts]),
        np.concatenate(supervised),
        lengths,
        np.array([len(texts)], np.int32),
        np.array([identity for one in asked for identity in one.pictures], np.int64),
        np.array(starts, np.int64),
    )


def _load_projector(trainable: TrainableModel, folder: Path) -> None:
    """Gives the trained projector the values of a checkpoint, besides those that `attach_lora` has loaded."""
    from safetensors.torch import load_file

    written = load_file(folder / ADAPTER_FILE)
    for name, parameter in trainable.adapter_parameters().items():
        if ".lora_" not in name:
            parameter.data.copy_(written[saved_name(name)])
