"""What a row says of the training besides its text is heard, refused or named; never left aside without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gemfleet.launcher.run.check_inputs import check_inputs
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.data import DataConfig
from gemfleet.train.data.rows import Row
from gemfleet.train.data.tokenizing import Encoder, tokenize_rows
from gemfleet.train.errors import UserError
from gemfleet.train.local.source import prepare_local
from support.tiny_tokenizer import tiny_tokenizer

PAIR = {"prompt": "q", "completion": "a"}
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CHAT = {"messages": [USER, ANSWER]}
ALPACA = {"instruction": "add", "input": "1 and 2", "output": "3"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def supervised_text(tokenizer: Any, values: dict[str, Any], **options: Any) -> str:
    (data,) = DataConfig(train="rows", **options).train_sets()
    done = tokenize_rows([Row("row 1", values)], Encoder(tokenizer, data, values))
    assert not done.left_out, done.left_out
    tokens, supervised = done.block.tokens.tolist(), done.block.supervised.tolist()
    return str(tokenizer.decode([t for t, s in zip(tokens, supervised, strict=True) if s]))


def left_out(tokenizer: Any, values: dict[str, Any]) -> str:
    (data,) = DataConfig(train="rows").train_sets()
    (row,) = tokenize_rows([Row("row 1", values)], Encoder(tokenizer, data, values)).left_out
    return row.reason


def answers(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [m for answer in messages for m in (USER, {"role": "assistant", **answer})]}


@pytest.mark.parametrize(
    "no", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}, {"weight": None, "train": 0}]
)
def test_an_answer_that_says_so_is_context_only(tokenizer: Any, no: dict[str, Any]) -> None:
    chat = answers({"content": "wrong", **no}, {"content": "right", "weight": 1}, {"content": "too", "train": None})
    assert supervised_text(tokenizer, chat) == "right<end_of_turn>too<end_of_turn>"
    pair = {"prompt": chat["messages"][:-1], "completion": [{"role": "assistant", "content": "c", **no}]}
    assert left_out(tokenizer, {**pair, "prompt": [USER]}) == "nothing supervised"


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        (answers({"content": "a", "weight": 0.5}), "weight is neither 0 nor 1"),
        (answers({"content": "a", "train": "no"}), "train is neither 0 nor 1"),
        ({"messages": [{**USER, "weight": 1}, ANSWER]}, "not an answer of the assistant's"),
        ({"messages": [{"role": "system", "content": "s", "train": True}, USER, ANSWER]}, "not an answer"),
        ({"prompt": [USER, {**ANSWER, "weight": 2}, USER], "completion": "a"}, "neither 0 nor 1"),
    ],
)
def test_a_weight_that_cannot_be_heard_leaves_the_row_out(tokenizer: Any, chat: dict[str, Any], reason: str) -> None:
    assert reason in left_out(tokenizer, chat)


@pytest.mark.parametrize(
    ("good", "bad", "name"),
    [
        (PAIR, {**PAIR, "weight": 0}, "weight"),
        (PAIR, {**PAIR, "Weight": 0.5}, "Weight"),
        (CHAT, {**CHAT, "train": False}, "train"),
        (PAIR, {**PAIR, "label": 0.5}, "label"),
        (PAIR, {**PAIR, "chosen": "a"}, "chosen"),
        (CHAT, {**CHAT, "rejected": [ANSWER]}, "rejected"),
        (PAIR, {**PAIR, "input": "1 and 2"}, "input"),
        (PAIR, {**PAIR, "system": "be brief"}, "system"),
        (PAIR, {**PAIR, "context": "a long page"}, "context"),
        (PAIR, {**PAIR, "history": [["q", "a"]]}, "history"),
        (PAIR, {**PAIR, "tools": [{"name": "search"}]}, "tools"),
        ({"text": "a"}, {"text": "a", "label": 3}, "label"),
        (CHAT, {"messages": [USER, {**ANSWER, "functions": [{"name": "f"}]}]}, "functions"),
        (CHAT, {"messages": [USER, {**ANSWER, "reasoning_content": "hm"}]}, "reasoning_content"),
        (CHAT, {"messages": [{**USER, "images": ["a.png"]}, ANSWER]}, "images"),
        ({**PAIR, "prompt": [USER]}, {**PAIR, "prompt": [{**USER, "label": 1}]}, "label"),
    ],
)
def test_what_would_change_the_training_is_refused(
    tmp_path: Path, tokenizer: Any, good: dict[str, Any], bad: dict[str, Any], name: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [good, {**bad, name: None} if name in bad else good, bad])))
    values = {"train": str(path), "eval_fraction": 0.0}
    sentence = rf"rows\.jsonl line 3 of .* has .*'{name}', which says more .*ignore_columns: \[{name}\]"
    with pytest.raises(UserError, match=sentence):
        prepare_local(DataConfig.model_validate(values), 1, 0, tokenizer, 1)
    config = TrainConfig.model_validate({"model": "demo", "data": values})
    with pytest.raises(UserError, match=sentence):
        check_inputs(config)
    aside = config.data.model_copy(update={"ignore_columns": (name, "rejected")})
    check_inputs(config.model_copy(update={"data": aside}))


def test_what_is_ignored_is_as_if_it_were_not_there(tokenizer: Any) -> None:
    call = {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    wrong = {"messages": [USER, {**ANSWER, "weight": 0, **call}], "system": "s", "tools": [{"name": "f"}]}
    ignored = ("weight", "tool_calls", "system", "tools", "role")  # roles are needed, so they stay
    (data,) = DataConfig(train="rows", ignore_columns=ignored).train_sets()
    found = tokenize_rows([Row("row 1", wrong)], Encoder(tokenizer, data, wrong))
    expected = tokenize_rows([Row("row 1", CHAT)], Encoder(tokenizer, data, CHAT))
    assert (found.block.tokens.tolist(), found.unused) == (expected.block.tokens.tolist(), frozenset())
    assert supervised_text(tokenizer, ALPACA, ignore_columns=("input",)) == "3<end_of_turn>"


def test_alpacas_input_is_refused_where_columns_name_the_rest(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps({**ALPACA, 'input': ''})}\n{json.dumps(ALPACA)}")
    columns = {"prompt": "instruction", "completion": "output"}
    data = DataConfig.model_validate({"train": str(path), "columns": columns})
    with pytest.raises(UserError, match=r"line 2 of .* has the column 'input'"):
        prepare_local(data, 1, 0, tokenizer, 1)


def test_other_columns_and_keys_are_named(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {**CHAT, "id": 7, "source": "", "weight": 1},
        {"messages": [{**USER, "name": "Eve", "tool_calls": []}, ANSWER], "prompt": "q", "tools": {"a": None}},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    _, report = prepare_local(DataConfig(train=str(path), eval_fraction=0.0), 1, 0, tokenizer, 1)
    assert report.summary().endswith("Not used of the rows: id, messages.name, prompt.")


@pytest.mark.parametrize("end", ["<eos>", "<eos><eos>", "<eos>\n", ""])
@pytest.mark.parametrize("start", ["<bos>", "<bos><bos>", ""])
def test_a_text_has_one_start_and_one_end(tokenizer: Any, start: str, end: str) -> None:
    for values, whole in (
        ({"text": f"{start}x{end}"}, "<bos>x<eos>"),
        ({**PAIR, "completion": f"x{end}"}, "<bos>qx<eos>"),
    ):
        (data,) = DataConfig(train="rows").train_sets()
        done = tokenize_rows([Row("row 1", values)], Encoder(tokenizer, data, values))
        assert tokenizer.decode(done.block.tokens.tolist()) == whole
    assert supervised_text(tokenizer, {"text": f"{start}x{end}"}, add_eos=False) == f"x{end}"
    assert left_out(tokenizer, {"text": start + end}) == "text is empty"
