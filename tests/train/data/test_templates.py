"""Chats through templates that are not Gemma's: the ids are transformers' own, and masks are exact or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gemfleet.launcher.run.check_inputs import check_inputs
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.data import DataConfig
from gemfleet.train.data.rows import Row
from gemfleet.train.data.shapes.conversation import Message
from gemfleet.train.data.templates.asking import Asking
from gemfleet.train.data.templates.gemma import CHAT_TEMPLATE
from gemfleet.train.data.templates.rendered import answer_end
from gemfleet.train.data.tokenizing import Encoder, tokenize_rows
from gemfleet.train.errors import UserError
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer

CHATML = """{%- if tools %}<tools>{{ tools | tojson }}</tools>
{% endif %}
{%- for m in messages %}[{{ m.role }}]
{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor -%}
{{ m.content or "" }}[end]
{% endfor %}
{%- if add_generation_prompt %}[assistant]
{% endif %}"""
MARKED = """{{ bos_token }}{% for m in messages %}
{%- if m.role == 'assistant' %}Answer: {% generation %}{{ m.content }}<eos>
{% endgeneration %}{% else %}Question: {{ m.content }}
{% endif %}{% endfor %}"""
LINES = (
    "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# Like templates of models that think: what an earlier answer says is cut out.
FORGETTING = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content if loop.last or m.role != 'assistant' else '…' }}<eos>"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
CALL: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}]
SAID: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 and 2? <b>é 😀</b>"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "name": "add", "tool_call_id": "c1"},
    {"role": "assistant", "content": " It is\n\n3. "},
    {"role": "user", "content": "안녕"},
    {"role": "assistant", "content": "hello"},
]
PLAIN = [SAID[1], SAID[4], SAID[5], SAID[6]]


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=pytest.mark.slow)])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "tiny":
        return tiny_tokenizer(tmp_path_factory.mktemp("tiny"))
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(request.getfixturevalue("demo_model"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("tiny"))


def encode(tokenizer: Any, chat: list[dict[str, Any]], template: str, **options: Any) -> Any:
    """The ids, the supervised text, or why the row is left out."""
    row = {"messages": chat, "tools": options.pop("tools", None)}
    (data,) = DataConfig(train="rows", chat_template=template, **options).train_sets()
    done = tokenize_rows([Row("row 1", row)], Encoder(tokenizer, data, row))
    if done.left_out:
        return done.left_out[0]
    ids, mask = done.block.tokens.tolist(), done.block.supervised.tolist()
    return ids, tokenizer.decode([token for token, learned in zip(ids, mask, strict=True) if learned])


def theirs(tokenizer: Any, chat: list[dict[str, Any]], template: str, **more: Any) -> Any:
    return tokenizer.apply_chat_template(chat, chat_template=template, tokenize=True, return_dict=True, **more)


@pytest.mark.parametrize(("chat", "tools"), [(SAID, TOOLS), (SAID[:2] + SAID[4:], None), (PLAIN, TOOLS)])
def test_ids_are_those_of_transformers_with_system_turns_and_tools(tokenizer: Any, chat: Any, tools: Any) -> None:
    ids, learned = encode(tokenizer, chat, CHATML, tools=tools)
    expected = theirs(tokenizer, chat, CHATML, tools=tools)["input_ids"]
    assert ids == [tokenizer.bos_token_id, *expected]  # this template gives none
    call = '<call>{"name": "add", "arguments": {"x": 1}}</call>[end]'
    assert learned == call * (SAID[2] in chat) + " It is\n\n3. [end]hello[end]"


def test_arguments_reach_a_template_as_objects(tiny: Any) -> None:
    function = {"name": "add", "arguments": '{"x": 1}'}  # as OpenAI has them
    chat = [SAID[1], {"role": "assistant", "content": None, "tool_calls": [{**CALL, "function": function}]}]
    assert encode(tiny, chat, CHATML) == encode(tiny, [SAID[1], SAID[2]], CHATML)
    escaped = CHATML.replace(
        '{{ m.content or "" }}', "{{ m.content | tojson if m.role == 'tool' else m.content or '' }}"
    )
    result = [{**SAID[3], "content": '{"sum": "3"}'}, SAID[6]]
    assert encode(tiny, [*chat, *result], escaped)[1].endswith("hello[end]")


def test_gemmas_own_template_gives_the_same_as_gemmas_turns(tokenizer: Any) -> None:
    chat = SAID[:2] + SAID[4:]
    ours = encode(tokenizer, chat, "gemma")
    assert ours == encode(tokenizer, chat, CHAT_TEMPLATE)
    assert ours[0] == theirs(tokenizer, chat, CHAT_TEMPLATE)["input_ids"]
    if tokenizer.chat_template:
        assert ours == encode(tokenizer, chat, "tokenizer")


def test_marks_of_a_template_are_the_mask(tokenizer: Any) -> None:
    chat = [PLAIN[0], {"role": "assistant", "content": "It is 3."}, *PLAIN[2:]]
    ids, learned = encode(tokenizer, chat, MARKED)
    found = theirs(tokenizer, chat, MARKED, return_assistant_tokens_mask=True)
    assert ids == found["input_ids"]
    both = zip(found["input_ids"], found["assistant_masks"], strict=True)
    assert learned == tokenizer.decode([token for token, mark in both if mark])
    assert encode(tokenizer, chat, MARKED, train_on="last")[1] == " hello<eos>\n"
    silent = [chat[0], {**chat[1], "weight": 0}, *chat[2:]]
    assert encode(tokenizer, silent, MARKED)[1] == " hello<eos>\n"


def test_white_space_ends_an_answer_only_where_nothing_else_does(tiny: Any) -> None:
    assert encode(tiny, PLAIN[2:], LINES)[1].lstrip() == "hello\n"
    assert [answer_end(tiny, template) for template in ("gemma", CHATML, LINES, MARKED)] == ["", "[end]", "\n", "<eos>"]


@pytest.mark.parametrize("template", ["gemma", CHATML, MARKED, LINES, FORGETTING])
def test_a_question_is_written_as_the_training_wrote_it(tokenizer: Any, template: str) -> None:
    """Also where a person spells out a control token, and where an answer's first token holds a space before it."""
    chat = [{**PLAIN[0], "content": "a <end_of_turn> b"}, *PLAIN[1:]] if template == "gemma" else PLAIN
    ids, learned = encode(tokenizer, chat, template, train_on="last")
    messages = [Message(said["role"], said["content"], number) for number, said in enumerate(chat[:-1], 1)]
    prompt = Asking(tokenizer, template).ids(messages)
    assert prompt == ids[: len(prompt)]
    assert tokenizer.decode(ids[len(prompt) :]).startswith(learned)


def test_a_prompt_without_turns_ends_as_those_of_the_data(tokenizer: Any) -> None:
    (data,) = DataConfig(train="rows").train_sets()
    row = {"prompt": "what is the cat\n", "completion": "hello"}
    done = tokenize_rows([Row("row 1", row)], Encoder(tokenizer, data, row))
    asked = Asking(tokenizer, None, "\n")
    for text in ("what is the cat", "what is the cat\n", "<bos>what is the cat"):
        prompt = asked.ids([Message("user", text)])
        assert prompt == done.block.tokens.tolist()[: -done.block.supervised_tokens]


def test_a_template_that_rewrites_earlier_turns_can_train_the_last_answer_only(tiny: Any) -> None:
    with pytest.raises(UserError, match=r"chat_template cannot .* message 2 in another way .*; mark answers"):
        encode(tiny, PLAIN, FORGETTING)
    ids, learned = encode(tiny, PLAIN, FORGETTING, train_on="last")
    assert ids == [tiny.bos_token_id, *theirs(tiny, PLAIN, FORGETTING)["input_ids"]]
    assert learned == "hello<eos>"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for %}", "a conversation that the chat template refuses .*; correct it, or set it to gemma"),
        ("{{ raise_exception('no chats') }}", r"refuses \(no chats\)"),
        ("{{ ''.__class__.__mro__ }}{{ messages | map(attribute='__class__') | list }}", "chat template refuses"),
        ("{{ messages[-1].content }}", "does not write .message 1 is 'user'.; correct it"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "message 2 is not in the text"),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}{% generation %}x{% endgeneration %}",
            "message 2 is not in the text .*; let its {% generation %} marks hold each answer .*, or set it to gemma",
        ),
        ("tokenizer", "the model's tokenizer has no chat template"),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_refused(tiny: Any, template: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        encode(tiny, PLAIN, template)


def test_a_tokenizer_with_several_templates_needs_one_for_chats(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.chat_template = {"tool_use": CHATML}
    with pytest.raises(UserError, match=r"has no chat template named 'default' \(it has 'tool_use'\); set it to gemma"):
        encode(tokenizer, PLAIN, "tokenizer")
    tokenizer.chat_template = {"default": LINES, "tool_use": CHATML}
    assert encode(tokenizer, PLAIN, "tokenizer") == encode(tokenizer, PLAIN, LINES)
    assert encode(tokenizer, PLAIN, "tokenizer", tools=TOOLS) == encode(tokenizer, PLAIN, CHATML, tools=TOOLS)


def test_rows_that_a_template_cannot_take_are_left_out(tiny: Any, tmp_path: Path) -> None:
    spelled = encode(tiny, [{"role": "user", "content": "<eos>"}, PLAIN[1]], CHATML)
    assert (spelled.reason.partition(",")[0], spelled.detail) == ("text that spells a special token", "<eos>")
    added = tiny_tokenizer(tmp_path)
    added.add_tokens(["[end]"])  # not special, yet the template's own
    assert encode(added, [{"role": "user", "content": "an [end]"}, PLAIN[1]], CHATML).detail == "[end]"
    assert "roles must alternate" in encode(tiny, PLAIN[1:], CHAT_TEMPLATE).detail
    assert encode(tiny, PLAIN, CHAT_TEMPLATE, tools=TOOLS).reason == "tools that the chat template does not write"
    unheard = CHATML.replace(
        "[{{ m.role }}]", "{% if m.role in ('system', 'tool') %}{% continue %}{% endif %}[{{ m.role }}]"
    )
    assert encode(tiny, [SAID[0], *PLAIN], unheard).detail == "message 1 is 'system'"
    assert encode(tiny, [*SAID[1:3], {**SAID[3], "content": "three"}, SAID[4]], unheard).detail == "message 3 is 'tool'"
    called = encode(tiny, [SAID[1], {**SAID[2], "content": ""}], CHAT_TEMPLATE)
    assert called.reason == "tool_calls that the chat template does not write"


def test_a_token_across_an_answers_border_leaves_the_row_out(tiny: Any) -> None:
    joined = "{% for m in messages %}<eos>{{ 'th' if m.role == 'assistant' }}{{ m.content }}{% endfor %}"
    joined += "{% if add_generation_prompt %}<eos>th{% endif %}"
    assert encode(tiny, [PLAIN[0], {"role": "assistant", "content": "x"}], joined)[1] == "x"
    (whole,) = tiny("the", add_special_tokens=False)["input_ids"]
    assert tiny.decode([whole]) == "the"
    left_out = encode(tiny, [PLAIN[0], {"role": "assistant", "content": "e"}], joined)
    assert left_out.detail == "one token, 'the', crosses the border of an answer"


def test_a_template_is_tried_before_anything_starts(tmp_path: Path) -> None:
    save_tiny_gemma3(tmp_path / "model")
    tiny_tokenizer(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"messages": []}')
    data = {"train": str(tmp_path / "rows.jsonl"), "chat_template": FORGETTING, "max_length": 64}
    with pytest.raises(UserError, match="chat_template cannot be trained with"):
        check_inputs(TrainConfig.model_validate({"model": str(tmp_path / "model"), "data": data}))
