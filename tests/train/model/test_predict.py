"""Answers in batches equal answers one by one, and prompts end where answers begin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.data import DataConfig
from gemfleet.train.data.packing import pack_steps
from gemfleet.train.data.readers import Row
from gemfleet.train.data.tokenizing import Encoder, tokenize_rows
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.model.predict import Predictor, Question, questions
from peft import LoraConfig, get_peft_model
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer
from transformers import Gemma3ForCausalLM

CONFIG = TrainConfig.model_validate({"model": "x", "data": {"train": "x"}, "precision": "fp32"})
MARKER = "<start_of_turn>model\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model and an adapter of it that changes its answers."""
    folder = tmp_path_factory.mktemp("predict")
    save_tiny_gemma3(folder / "model")
    tiny_tokenizer(folder / "model")
    base = Gemma3ForCausalLM.from_pretrained(folder / "model")
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder / "adapter")
    return folder / "model", folder / "adapter"


def rows_of(tokenizer: object, rows: Sequence[dict[str, Any]], columns: tuple[str, ...]) -> PackedRows:
    encoder = Encoder(tokenizer, DataConfig(train="x").train_sets()[0], columns)
    block = tokenize_rows([Row(str(n), row) for n, row in enumerate(rows)], encoder).block
    return pack_steps([block], 1, 256).step(0, 0).rows


def test_prompts_end_where_answers_begin(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)

    def split(rows: Sequence[dict[str, Any]], *columns: str) -> set[tuple[str, str]]:
        asked = questions(rows_of(tokenizer, rows, columns), tokenizer, MARKER)
        return {(tokenizer.decode(list(q.prompt)), tokenizer.decode(list(q.reference))) for q in asked}

    pairs = [{"prompt": "what is it\n", "completion": "a cat"}, {"prompt": "who\n", "completion": "the user"}]
    assert split(pairs, "prompt", "completion") == {("<bos>what is it\n", "a cat"), ("<bos>who\n", "the user")}
    chat = [
        {"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, ["hi", "hello", "who", "me"], strict=True)
    ]
    ((prompt, answer),) = split([{"messages": chat}], "messages")
    assert prompt.endswith("who<end_of_turn>\n<start_of_turn>model\n")
    assert answer == "me"
    marked = f"<start_of_turn>user\nwhat<end_of_turn>\n{MARKER}the mat"
    assert split([{"text": marked}], "text") == {(f"<bos>{marked.removesuffix('the mat')}", "the mat")}
    ((first, second),) = split([{"text": "the cat sat on the mat"}], "text")
    assert first.removeprefix("<bos>") + second == "the cat sat on the mat"
    assert 3 <= len(second) <= 18


def test_a_document_of_one_token_asks_nothing(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    one = np.array([2, 1], np.int32)
    rows = PackedRows(one, np.array([False, True]), np.array([2], np.int32), np.array([1], np.int32))
    assert questions(rows, tokenizer, MARKER) == []


def test_batched_answers_equal_single_ones_and_the_adapter_counts(folders: tuple[Path, Path]) -> None:
    predictor = Predictor(*folders, CONFIG)
    asked = [Question(tuple(range(2, 2 + n)), (5, 6)) for n in (3, 9, 20)]
    together = predictor.answer(asked, 8)
    assert [predictor.answer([question], 8)[0] for question in asked] == together
    with predictor.model.disable_adapter():
        base = predictor.answer(asked, 8)
    assert base != together
    assert Predictor(folders[0], None, CONFIG).answer(asked, 8) == base
    assert [p.reference for p in together] == ["!"] * 3  # 5 is <end_of_turn>, which is no text


def test_answers_are_what_a_plain_loop_of_greedy_steps_gives(folders: tuple[Path, Path]) -> None:
    predictor = Predictor(*folders, CONFIG)
    ids = list(range(10, 30))
    (answer,) = predictor.answer([Question(tuple(ids), (5,))], 6)
    new: list[int] = []
    with torch.no_grad():
        while len(new) < 6:
            logits = predictor.model(input_ids=torch.tensor([ids + new])).logits[0, -1]
            new.append(int(logits.argmax()))
            if new[-1] in (1, 5):
                break
    assert answer.prediction == predictor.tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize(("end", "template"), [("[end]", "[end]"), ("<unk>", "<unk>\n"), ("\n", "\n")])
def test_an_answer_ends_where_the_chat_template_ends_it(folders: tuple[Path, Path], end: str, template: str) -> None:
    """Its end is one token, or several, and no part of a prediction or a reference."""
    chats = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + template + "{% endfor %}"
    chats += "{% if add_generation_prompt %}assistant: {% endif %}"
    data = CONFIG.data.model_copy(update={"chat_template": chats})
    predictor = Predictor(*folders, CONFIG.model_copy(update={"data": data}))
    tokenizer = predictor.tokenizer
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    encoder = Encoder(tokenizer, data.train_sets()[0], ("messages",))
    block = tokenize_rows([Row("1", {"messages": chat})], encoder).block
    (question,) = questions(pack_steps([block], 1, 256).step(0, 0).rows, tokenizer, MARKER)
    (answer,) = predictor.answer([question], 8)
    assert answer.reference == "hello"
    asked: dict[str, Any] = {}
    predictor.model.generate = lambda **given: asked.update(given) or given["input_ids"]  # type: ignore[assignment]
    predictor.answer([question], 8)
    ends = tokenizer(end, add_special_tokens=False)["input_ids"]
    assert ends[0] in asked["eos_token_id"] if len(ends) == 1 else asked["stop_strings"] == [end]
