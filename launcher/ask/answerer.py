"""Asks a base model with its adapter, or without it. One model is in memory, and the answer comes as it is made."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any, Protocol

import psutil
import torch
from gemfleet.launcher.result.tokenizer_files import GENERATION_FILE, generation_config
from gemfleet.train.checkpoint.state import ADAPTER_FILE
from gemfleet.train.data.pictures.format import PictureFormat
from gemfleet.train.data.shapes.conversation import Message
from gemfleet.train.data.templates.asking import Asking
from gemfleet.train.data.templates.gemma import TURN_START
from gemfleet.train.data.templates.rendered import answer_end
from gemfleet.train.device.abilities import DeviceFacts, choose_dtype, current_device
from gemfleet.train.device.memory import container_bytes
from gemfleet.train.errors import UserError, first_line
from gemfleet.train.model.base_check import load_tokenizer
from gemfleet.train.model.gemma import load_base_model
from gemfleet.train.model.vision.tower import give_eyes, give_eyes_if_trained
from gemfleet.train.model.weight_files import stored_tensors
from gemfleet.train.quiet import without_bars
from safetensors import safe_open

from .seeing import seen
from .streaming import TextOfTokens, tidied
from .subject import Subject

GREEDY = {"do_sample": False, "top_k": None, "top_p": None, "temperature": None}
GIB = 2**30


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. greedy: not as the model's generation_config.json says; seed: None: a new one each time"""

    greedy: bool = False
    seed: int | None = None
    max_new_tokens: int = 256


class Answers(Protocol):
    """A model that answers, here or elsewhere. turns: within a conversation; if not, each prompt stands alone"""

    @property
    def turns(self) -> bool: ...

    def answer(self, messages: Sequence[Message], sampling: Sampling, base: bool = False) -> Generator[str]:
        """The answer to the last message, in pieces as they come. A closed generator ends the generation.

        base: whether the untrained base answers
        Raises UserError for messages that cannot be written as in training.
        """
        ...


class Answerer:
    """The model of a subject on this process's device. ended: whether the newest answer has come to its own end"""

    ended = True

    def __init__(self, subject: Subject, sees: bool = False) -> None:
        """Loads the model. sees: questions come with pictures

        Raises UserError if it does not fit into memory, if base and adapter do not fit together, and for a base that
        does not see although it shall.
        """
        facts = current_device(0)
        dtype = fitting_dtype(subject, facts)
        self._shown = _shown_to(subject) if sees else None
        with without_bars():
            base = load_base_model(subject.base, dtype, facts.device, subject.quantization)
            if sees:
                give_eyes(base, subject.base, dtype)
            else:
                give_eyes_if_trained(base, subject.base, subject.adapter, dtype)
        self._dtype = dtype
        self._model, self._device = _adapted(base, subject).eval(), facts.device
        own = (subject.adapter / "tokenizer.json").is_file()
        self._tokenizer = load_tokenizer(subject.adapter if own else subject.base)
        template = template_of(subject, self._tokenizer)
        ending, picture = subject.prompts.ending if subject.prompts else "", self._shown.tokens if self._shown else ()
        self._asking = Asking(self._tokenizer, template, ending, picture)
        self._end = answer_end(self._tokenizer, template or "gemma")
        self._settings = _settings(subject, self._end)
        self._stop = Event()

    @property
    def turns(self) -> bool:
        return self._asking.turns

    def stop(self) -> None:
        """End the answer that is being made."""
        self._stop.set()

    def answer(self, messages: Sequence[Message], sampling: Sampling, base: bool = False) -> Generator[str]:
        """See `Answers`."""
        from transformers import StoppingCriteriaList

        ids = torch.tensor([self._prompt(messages)], device=self._device)
        pictures = seen(messages, ids, self._shown, self._dtype)
        self._stop, failures = Event(), list[Exception]()
        stop = self._stop
        streamer = TextOfTokens(self._tokenizer)
        options = self._options(sampling) | {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            **pictures,
            "streamer": streamer,
            "stopping_criteria": StoppingCriteriaList([lambda ids, scores: torch.full((1,), stop.is_set())]),
        }
        worker = Thread(target=self._generate, args=(options, sampling, base, failures), daemon=True)
        worker.start()
        try:
            yield from tidied(streamer, self._end)
        finally:
            stop.set()
            worker.join()
        if failures:
            raise UserError(f"the model could not answer: {first_line(failures[0])}") from failures[0]

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a prompt. Raises UserError if it leaves no room for an answer, or is no text."""
        try:
            prompt = self._asking.ids(messages)
        except TypeError as error:  # bytes that are no UTF-8 arrive as lone surrogates, which no tokenizer takes
            raise UserError("the question is not UTF-8 text; write it as such") from error
        room = self._model.config.get_text_config().max_position_embeddings
        if len(prompt) >= room:
            raise UserError(
                f"the prompt has {len(prompt):,} tokens, but the model takes {room:,} with the answer; ask with less, "
                "in a chat after /reset"
            )
        return prompt

    def _options(self, sampling: Sampling) -> dict[str, Any]:
        """What `generate` gets besides the prompt. An end of several tokens is looked for in the text."""
        several = len(self._tokenizer(self._end, add_special_tokens=False)["input_ids"]) > 1
        settings = copy.deepcopy(self._settings)
        ends = {"stop_strings": [self._end]} if several else {}
        settings.update(max_new_tokens=sampling.max_new_tokens, **ends, **(GREEDY if sampling.greedy else {}))
        return {"generation_config": settings, "tokenizer": self._tokenizer}

    @torch.inference_mode()
    def _generate(self, options: dict[str, Any], sampling: Sampling, base: bool, failures: list[Exception]) -> None:
        try:
            torch.manual_seed(sampling.seed) if sampling.seed is not None else torch.seed()
            with self._model.disable_adapter() if base else nullcontext():
                output = self._model.generate(**options)
            self.ended = len(output[0]) - options["input_ids"].shape[1] < sampling.max_new_tokens
        except Exception as error:  # it is raised where the answer is read
            failures.append(error)
            options["streamer"].end()


def template_of(subject: Subject, tokenizer: Any) -> str | None:
    """What writes the subject's chats, as `train.data.chat_template` says it; None where prompts have no turns."""
    if subject.prompts is not None:
        return (subject.template or "gemma") if subject.prompts.turns else None
    if not tokenizer.chat_template:
        return None
    return subject.template or ("gemma" if TURN_START in str(tokenizer.chat_template) else "tokenizer")


def fitting_dtype(subject: Subject, facts: DeviceFacts) -> torch.dtype:
    """The dtype of the weights. On a CPU, fp32 if there is room: single tokens took half the time that bf16 takes.

    Raises UserError if the base's weights are larger than the memory that is free.
    """
    on_gpu = facts.device.type == "cuda"
    numbers = sum(math.prod(tensor.shape) for tensor in stored_tensors(subject.base).values())
    free = torch.cuda.mem_get_info(facts.device)[0] if on_gpu else psutil.virtual_memory().available
    free = min(free, container_bytes() or free) if not on_gpu else free
    choices = [choose_dtype("auto", facts)] if on_gpu else [torch.float32, torch.bfloat16]
    for dtype in choices:
        if numbers * (dtype.itemsize if subject.quantization == "none" else 1) <= free:
            return dtype
    raise UserError(
        f"the base model of {subject.name} has {numbers / 1e9:.2f} billion weights, which do not fit into the "
        f"{free / GIB:.1f} GiB that are free here; ask where there is more, for example with --cluster"
    )


def _adapted(base: Any, subject: Subject) -> Any:
    from peft import PeftModel, get_peft_model_state_dict

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft only warns of tensors that have no place
            model = PeftModel.from_pretrained(base, str(subject.adapter))
        with safe_open(subject.adapter / ADAPTER_FILE, framework="pt") as stored:
            if odd := set(stored.keys()) ^ set(get_peft_model_state_dict(model, save_embedding_layers=False)):
                raise ValueError(f"only one of them has {min(odd)}")
        return model
    except Exception as error:  # peft raises many kinds for an adapter of another base
        raise UserError(
            f"the adapter of {subject.name} does not fit the base in {subject.base} ({first_line(error)}); "
            "name the base that it was trained on by --model"
        ) from error


def _shown_to(subject: Subject) -> PictureFormat:
    shown = PictureFormat.of(subject.base)
    if shown is None:
        raise UserError(
            f"--image is given, but the base of {subject.name} does not see; of Gemma 3, 4B, 12B and 27B do"
        )
    if shown.refusal:
        raise UserError(shown.refusal)
    return shown


def _settings(subject: Subject, end: str) -> Any:
    """transformers' settings for generating: the adapter's own, else the base's with all tokens that end an answer."""
    from transformers import GenerationConfig

    if (subject.adapter / GENERATION_FILE).is_file():
        return GenerationConfig.from_pretrained(subject.adapter)
    return GenerationConfig.from_dict(generation_config(subject.base, end))
