"""Rows of every shape become the same conversation, and exactly the chosen answers are supervised."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from gemfleet.train.config.sections.data import DataConfig
from gemfleet.train.data.rows import Row
from gemfleet.train.data.templates.functions import INSTRUCTION
from gemfleet.train.data.templates.gemma import CHAT_TEMPLATE
from gemfleet.train.data.tokenizing import Encoder, tokenize_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.tiny_tokenizer import tiny_tokenizer

WORDS = st.text(alphabet="ab <>/é한😀\n\t{}\"'", min_size=1, max_size=12).filter(str.strip)
FLAGS = st.sampled_from([None, None, True, False])
TURNS = "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}<eos>\n{% endfor %}"
TURNS += "{% if add_generation_prompt %}[assistant]\n{% endif %}"
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def encode(tokenizer: Any, row: dict[str, Any], **options: Any) -> Any:
    """The ids and the supervision of a row, or why it is left out."""
    (data,) = DataConfig(train="rows", **{"max_length": 4000, **options}).train_sets()
    done = tokenize_rows([Row("row 1", row)], Encoder(tokenizer, data, row))
    return done.left_out[0].reason if done.left_out else (done.block.tokens.tolist(), done.block.supervised.tolist())


def supervised_text(tokenizer: Any, row: dict[str, Any], **options: Any) -> str:
    ids, mask = encode(tokenizer, row, **options)
    return str(tokenizer.decode([token for token, learned in zip(ids, mask, strict=True) if learned]))


@st.composite
def conversations(draw: Any) -> list[dict[str, Any]]:
    """Rounds of question and answer; some answers call a function and read its result first."""
    chat: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 3))):
        chat.append({"role": "user", "content": draw(WORDS)})
        if draw(st.booleans()):
            call = {"name": "add", "arguments": {"x": draw(st.integers(-5, 5))}}
            chat += [{"role": "call", "content": call, "weight": draw(FLAGS)}, {"role": "tool", "content": draw(WORDS)}]
        chat.append({"role": "assistant", "content": draw(WORDS), "weight": draw(FLAGS)})
    return chat


def reference(
    tokenizer: Any, chat: list[dict[str, Any]], system: str, tools: bool, learned: set[int]
) -> tuple[list[int], list[bool]]:
    """The published template's text as a whole; in it the answers of `learned`, by their places in the text."""
    head = [INSTRUCTION + json.dumps([tool["function"] for tool in TOOLS], indent=2)] * tools + [system] * bool(system)
    told = [{"role": "system", "content": "\n\n".join(head)}] * bool(head)
    for message in chat:
        if message["role"] == "call":
            call = message["content"]
            told.append({"role": "assistant", "content": json.dumps({"name": "add", "parameters": call["arguments"]})})
        else:
            told.append({**message, "role": "user" if message["role"] == "tool" else message["role"]})
    text = tokenizer.apply_chat_template(told, chat_template=CHAT_TEMPLATE, tokenize=False)
    turns = [match.span(1) for match in re.finditer(r"<start_of_turn>\w+\n(.*?<end_of_turn>)", text, re.DOTALL)]
    spans = [turns[index] for index in learned]
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = [any(start <= first < end for start, end in spans) for first, _ in found["offset_mapping"]]
    return found["input_ids"], mask


def expected_answers(chat: list[dict[str, Any]], train_on: str) -> set[int]:
    answers = [n for n, message in enumerate(chat) if message["role"] in ("call", "assistant")]
    last_question = max(n for n, message in enumerate(chat) if message["role"] == "user")
    chosen = {"all": answers, "last": answers[-1:], "completion": [n for n in answers if n > last_question]}[train_on]
    told = {n: message["weight"] for n, message in enumerate(chat) if message.get("weight") is not None}
    return {n for n in answers if told.get(n, n in chosen)}


def as_openai(message: dict[str, Any], legacy: bool = False) -> dict[str, Any]:
    if message["role"] != "call":
        return message
    call = {**message["content"], "arguments": json.dumps(message["content"]["arguments"])}
    said = {"function_call": call} if legacy else {"tool_calls": [{"id": "1", "type": "function", "function": call}]}
    return {"role": "assistant", "content": None, "weight": message.get("weight"), **said}


def as_sharegpt(message: dict[str, Any]) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "call": "function_call", "tool": "observation"}
    content = message["content"]
    value = content if isinstance(content, str) else json.dumps(content)
    return {"from": names[message["role"]], "value": value, "weight": message.get("weight")}


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chat=conversations(),
    system=st.sampled_from(["", "Be brief."]),
    tools=st.booleans(),
    train_on=st.sampled_from(["all", "last", "completion"]),
)
def test_masks_equal_a_reference_for_every_shape(
    tokenizer: Any, chat: list[dict[str, Any]], system: str, tools: bool, train_on: str
) -> None:
    learned = expected_answers(chat, train_on)
    wanted = reference(tokenizer, chat, system, tools, learned) if learned else "nothing supervised"
    more = {"tools": TOOLS} if tools else {}
    opening = [{"role": "system", "content": system}] * bool(system)
    rows: list[dict[str, Any]] = [
        {"messages": [*opening, *map(as_openai, chat)], **more},
        {"messages": [*opening, *(as_openai(message, legacy=True) for message in chat)], **more},
        {"conversations": list(map(as_sharegpt, chat)), "system": system, "tools": json.dumps(more.get("tools", ""))},
    ]
    for row in rows:
        assert encode(tokenizer, row, train_on=train_on) == wanted
    plain = not tools and all(message["role"] != "call" for message in chat)
    if plain:
        assert encode(tokenizer, rows[0], train_on=train_on, chat_template=CHAT_TEMPLATE) == wanted
        check_own_template(tokenizer, rows[0], chat, learned, train_on)
        prompt, completion = rows[0]["messages"][:-1], rows[0]["messages"][-1:]
        pair = {"prompt": prompt, "completion": completion}
        assert encode(tokenizer, pair, train_on=train_on) == wanted
    if plain and all(message.get("weight") is None for message in chat):
        texts = [message["content"] for message in chat]
        history = [list(pair) for pair in zip(texts[:-2:2], texts[1:-2:2], strict=True)]
        row = {"instruction": texts[-2], "input": "", "output": texts[-1], "history": history, "system": system}
        assert encode(tokenizer, row, train_on=train_on) == wanted


def check_own_template(
    tokenizer: Any, row: dict[str, Any], chat: list[dict[str, Any]], learned: set[int], train_on: str
) -> None:
    """The ids are transformers', and the supervised text is the answers with their ends."""
    found = encode(tokenizer, row, train_on=train_on, chat_template=TURNS)
    answers = [chat[index]["content"] for index in sorted(learned)]
    if isinstance(found, str):  # white space at an answer's start is one token with the line break before it
        assert not answers or any(answer[0].isspace() for answer in answers)
        return
    ids, mask = found
    assert ids[1:] == tokenizer.apply_chat_template(row["messages"], chat_template=TURNS)["input_ids"]
    text = tokenizer.decode([token for token, marked in zip(ids, mask, strict=True) if marked])
    assert text == "".join(f"{answer}<eos>" for answer in answers)


CHAT = [{"role": role, "content": text} for role, text in [("user", "hi"), ("assistant", "a"), ("user", "and")]]


def test_names_of_columns_keys_and_roles_can_be_given(tokenizer: Any) -> None:
    row = {"dialogue": [{"who": "client", "says": "hi"}, {"who": "bot", "says": "hello"}]}
    options = {
        "columns": {"messages": "dialogue", "role": "who", "content": "says"},
        "roles": {"client": "user", "bot": "assistant"},
    }
    assert supervised_text(tokenizer, row, **options) == "hello<end_of_turn>"
    assert "a role that has no meaning here" in encode(tokenizer, row, columns=options["columns"])
    shared = {"conversations": [{"who": "human", "value": "hi"}, {"who": "gpt", "value": "hello"}]}
    assert supervised_text(tokenizer, shared, columns={"role": "who"}) == "hello<end_of_turn>"
    mixed = [{"role": None, "content": None, **as_sharegpt(message)} for message in CHAT[:2]]
    assert encode(tokenizer, {"messages": mixed}) == encode(tokenizer, {"messages": CHAT[:2]})
    with pytest.raises(ValidationError, match="roles"):
        DataConfig.model_validate({"train": "rows", "roles": {"bot": "machine"}})


def test_parts_of_openais_responses_are_text(tokenizer: Any) -> None:
    parts = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
    ]
    assert encode(tokenizer, {"messages": parts}) == encode(tokenizer, {"messages": CHAT[:2]})


def test_turns_of_one_role_are_joined_if_asked(tokenizer: Any) -> None:
    row = {"messages": [*CHAT, {"role": "user", "content": "then"}, {"role": "assistant", "content": "b"}]}
    assert encode(tokenizer, row) == "roles that do not alternate user, assistant"
    joined = {"messages": [*CHAT[:2], {"role": "user", "content": "and\n\nthen"}, row["messages"][-1]]}
    assert encode(tokenizer, row, merge_roles=True) == encode(tokenizer, joined)
    split = {"messages": [CHAT[0], {**CHAT[1], "weight": 0}, CHAT[1]]}
    assert "to join of which one alone" in encode(tokenizer, split, merge_roles=True)


def test_prompts_are_learned_if_asked(tokenizer: Any) -> None:
    for row in ({"prompt": "q", "completion": "a"}, {"messages": CHAT[:2]}):
        ids, mask = encode(tokenizer, row, supervise_prompt=True)
        assert ids == encode(tokenizer, row)[0]
        assert mask == [False] + [True] * (len(ids) - 1)
        if "messages" in row:
            assert encode(tokenizer, row, supervise_prompt=True, chat_template=CHAT_TEMPLATE) == (ids, mask)
    told = {"messages": [CHAT[0], {**CHAT[1], "weight": 0}]}
    assert "beside supervise_prompt" in encode(tokenizer, told, supervise_prompt=True)
    with pytest.raises(ValidationError, match="leave one of them out"):
        DataConfig(train="rows", supervise_prompt=True, train_on="last")


def test_results_and_the_question_after_them_are_one_turn(tokenizer: Any) -> None:
    call = {"tool_calls": [{"function": {"name": "add", "arguments": "{}"}}] * 2}
    messages = [
        CHAT[0],
        {"role": "assistant", **call},
        {"role": "tool", "content": "1", "name": "add"},
        {"role": "tool", "content": {"sum": 2}},
        {"role": "user", "content": "so?"},
        {"role": "assistant", "content": "3"},
    ]
    ids, _ = encode(tokenizer, {"messages": messages})
    called = '{"name": "add", "parameters": {}}'
    assert tokenizer.decode(ids) == (
        f"<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n[{called}, {called}]<end_of_turn>\n"
        '<start_of_turn>user\n1\n{"sum": 2}\nso?<end_of_turn>\n<start_of_turn>model\n3<end_of_turn>\n'
    )


def test_results_stand_in_the_order_of_their_calls(tokenizer: Any) -> None:
    calls = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in "ab"]
    results = [{"role": "tool", "content": f"of {name}", "tool_call_id": name} for name in "ab"]
    start = [CHAT[0], {"role": "assistant", "tool_calls": calls}]
    there, back = ({"messages": [*start, *order, CHAT[1]]} for order in (results, results[::-1]))
    assert encode(tokenizer, back) == encode(tokenizer, there)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        *(
            (
                {"messages": [CHAT[0], {"role": "assistant", "function_call": {"name": "f", "arguments": wrong}}]},
                "no JSON",
            )
            for wrong in (0, False, [1], "[1]")
        ),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f(x)"}]}, "not JSON"),
        ({"messages": [CHAT[0], {"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "without a function's name"),
        (
            {"messages": [CHAT[0], {"role": "assistant", "function_call": {"name": "f", "arguments": "x"}}]},
            "whose arguments are not JSON",
        ),
        ({"messages": [{**CHAT[0], "tool_calls": [{"function": {"name": "f"}}]}]}, "not the assistant's"),
        ({"messages": CHAT[:2], "tools": "search"}, "tools that are not JSON"),
        ({"messages": CHAT[:2], "tools": [{"type": "function"}]}, "tools of which one has no name"),
        ({"messages": CHAT[:2], "tools": TOOLS, "functions": TOOLS}, "both tools and functions"),
        ({"messages": [{"role": "system", "content": "a"}, *CHAT], "system": "b"}, "beside a system message"),
        ({"instruction": "", "output": "a"}, "instruction is empty"),
        ({"instruction": "q", "output": ""}, "output is empty"),
        ({"instruction": "q", "output": "a", "history": [["q"]]}, "history that is not a list"),
    ],
)
def test_what_a_shape_cannot_hold_is_left_out_by_name(tokenizer: Any, row: dict[str, Any], reason: str) -> None:
    assert reason in encode(tokenizer, row)


def test_an_instruction_and_its_input_are_one_question(tokenizer: Any) -> None:
    row = {"instruction": "add", "input": "1 and 2", "output": "3", "text": "Below is …"}
    chat = [{"role": "user", "content": "add\n1 and 2"}, {"role": "assistant", "content": "3"}]
    assert encode(tokenizer, row) == encode(tokenizer, {"messages": chat})


def test_a_template_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    values = {"train": "rows", "chat_template": "mine.jinja"}
    found = DataConfig.model_validate(values, context={"folder": tmp_path})
    assert found.chat_template == "{{ messages }}"
    assert DataConfig.model_validate(found.model_dump()) == found
    (tmp_path / "mine.jinja").write_text("no template")
    for value, sentence in (("mine.jinja", "holds no template of Jinja"), ("chatml", "'chatml' is not a file; give")):
        with pytest.raises(ValidationError, match=sentence):
            DataConfig.model_validate({**values, "chat_template": value}, context={"folder": tmp_path})
