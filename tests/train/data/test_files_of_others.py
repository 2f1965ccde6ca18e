"""Files in the shapes of LLaMA-Factory's demonstrations: each trains as it is, or one sentence says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gemfleet.launcher.run.check_inputs import check_data
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.local.source import prepare_local
from support.tiny_tokenizer import tiny_tokenizer

TOOLS = json.dumps([{"name": "tide", "description": "High tide at a port", "parameters": {"type": "object"}}])
CALL = '{"name": "tide", "arguments": {"port": "Brest"}}'
SHAREGPT = [{"from": "human", "value": "When is high tide in Brest?"}]
CHAT = [{"role": "user", "content": "Name a bird."}, {"role": "assistant", "content": "The wren."}]

TRAINED: dict[str, list[dict[str, Any]]] = {
    "alpaca_en.json": [
        {"instruction": "Name a river in France.", "input": "", "output": "The Loire."},
        {"instruction": "Translate into French.", "input": "bread", "output": "le pain"},
    ],
    "alpaca_zh.json": [{"instruction": "说出一种水果。", "input": "", "output": "苹果。"}],
    "identity.json": [{"instruction": "hi", "input": "", "output": "Hello! I am {{name}}, made by {{author}}."}],
    "glaive_toolcall_en.json": [
        {
            "conversations": [
                *SHAREGPT,
                {"from": "function_call", "value": CALL},
                {"from": "observation", "value": '{"time": "05:12"}'},
                {"from": "gpt", "value": "At 05:12."},
            ],
            "tools": TOOLS,
        }
    ],
    "glaive_toolcall_zh.json": [
        {"conversations": [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "您好!"}], "tools": "[]"}
    ],
    "openai.jsonl": [
        {
            "messages": [
                {"role": "system", "content": "Answer in one sentence."},
                {"role": "user", "content": "When is high tide in Brest?", "name": "Ana"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c", "type": "function", "function": {"name": "tide", "arguments": '{"port": "Brest"}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c", "content": "05:12"},
                {"role": "assistant", "content": "At 05:12.", "weight": 0},
                {"role": "user", "content": "Thanks."},
                {"role": "assistant", "content": "You are welcome.", "weight": 1},
            ],
            "tools": [{"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}],
            "parallel_tool_calls": False,
        }
    ],
    "c4.jsonl": [{"text": "Bread is baked from flour and water.", "timestamp": "2019", "url": "x"}],
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dpo_en.json": (
        {
            "conversations": SHAREGPT,
            "chosen": {"from": "gpt", "value": "At 05:12."},
            "rejected": {"from": "gpt", "value": "No idea."},
        },
        r"is a data set of preferences \(for DPO: .*write the questions with their better answers as `messages`",
    ),
    "dpo_pairs.json": ({"question": "q", "chosen": "a", "rejected": "b"}, "is a data set of preferences"),
    "kto_en.json": (
        {"messages": CHAT, "label": True},
        r"is a data set of verdicts \(for KTO: .*keep the rows with good answers.*ignore_columns: \[label\]",
    ),
    "mllm.json": (
        {"messages": [{"role": "user", "content": "<image>What is it?"}, CHAT[1]], "images": ["a.jpg"]},
        r"mllm.json .* holds an image \(in the column 'images'\), but the base does not see .* leave out",
    ),
    "mllm_video.json": ({"messages": CHAT, "videos": ["a.mp4"]}, "holds a film"),
    "reason.json": (
        {"messages": [CHAT[0], {**CHAT[1], "reasoning_content": "hm"}]},
        r"has a message with 'reasoning_content', which says more .*ignore_columns: \[reasoning_content\]",
    ),
}


def config_of(path: Path, rows: list[dict[str, Any]]) -> TrainConfig:
    lines = "\n".join(map(json.dumps, rows))
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(rows))
    data = {"train": str(path), "eval_fraction": 0.0, "max_length": 2000}
    return TrainConfig.model_validate({"model": "demo", "data": data})


@pytest.mark.parametrize("name", TRAINED)
def test_a_file_of_theirs_trains_as_it_is(tmp_path: Path, name: str) -> None:
    config = config_of(tmp_path / name, TRAINED[name])
    check_data(config.data.train_sets()[0], lambda: False)
    source, report = prepare_local(config.data, 1, 0, tiny_tokenizer(tmp_path / "tokenizer"), 1)
    assert (report.examples, report.left_out) == (len(TRAINED[name]), {})
    assert source.steps_per_epoch == report.examples
    if name == "openai.jsonl":
        assert report.unused == {"messages.name", "parallel_tool_calls"}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_asks_for_more_is_answered_in_one_sentence(tmp_path: Path, name: str) -> None:
    row, sentence = REFUSED[name]
    config = config_of(tmp_path / name, [row])
    with pytest.raises(UserError, match=sentence) as error:
        check_data(config.data.train_sets()[0], lambda: False)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=sentence):
        prepare_local(config.data, 1, 0, tiny_tokenizer(tmp_path / "tokenizer"), 1)
