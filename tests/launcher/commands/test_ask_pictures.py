"""What a person sees of `ask` and `chat` in a terminal. The answers are given, so that no model is loaded."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.ask.answerer import Sampling
from gemfleet.launcher.cli import app
from gemfleet.launcher.commands import launch_here
from gemfleet.launcher.commands.ask_print import wrapped
from gemfleet.launcher.config.load import load_config
from gemfleet.launcher.run.outcome import Outcome
from gemfleet.train.data.shapes.conversation import Message
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from support.places import REPOSITORY
from support.terminal_pictures import check_snapshot, terminal_environment
from typer.testing import CliRunner

RUN_ID = "finance-questions-20260102-030405-1a2b"
SIMPLE = "Simple interest is paid on the first deposit alone. "


class Given:
    """Answers whose text says how many messages came before, and whether a system text is the first."""

    turns = True

    def answer(self, messages: Sequence[Message], sampling: Sampling, base: bool = False) -> Generator[str]:
        if base:
            yield SIMPLE * 4
            return
        if messages[-1].content == "interrupt":
            yield "It is"
            raise KeyboardInterrupt
        yield "It is "
        yield f"answer {len(messages)}" + (f", {messages[0].content}." if messages[0].role == "system" else ".")


@pytest.fixture(autouse=True)
def _given(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def opened(*arguments: Any) -> Generator[tuple[str, Given]]:
        yield f"{RUN_ID}, step 40", Given()

    for command in ("ask", "chat"):
        monkeypatch.setattr(f"gemfleet.launcher.commands.{command}.opened", opened)


def seen(width: int, *arguments: str, typed: str = "") -> str:
    result = CliRunner().invoke(
        app, list(arguments), input=typed, env=terminal_environment(width), catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.output


def last_frames(output: str) -> str:
    """Without what was drawn over: each drawing begins by clearing the lines of the one before."""
    kept: list[str] = []
    for line in output.replace("\r", "").split("\n"):
        for _ in range(line.count("\x1b[1A")):
            kept.pop()
        kept.append(line.rpartition("\x1b[2K")[2])
    return "\n".join(kept)


@pytest.mark.parametrize("width", [80, 120])
def test_ask_beside_the_base(width: int) -> None:
    """In columns where there is room, else below each other; markup in a question stays text."""
    output = seen(width, "ask", "latest", "What is [b]simple[/b] interest?", "And compound?", "--base")
    check_snapshot("ask-base", last_frames(output), width)


@given(st.text("ab 가\n", max_size=60), st.integers(4, 12))
def test_lines_break_between_words_and_lose_nothing(text: str, width: int) -> None:
    shown = "".join(wrapped(iter(text), width))
    words = text.replace("가", " 가 ").split()
    assert shown.replace("가", " 가 ").split() == words
    longest = max(map(cell_len, words), default=0)
    assert all(cell_len(line) <= max(width, longest) for line in shown.split("\n"))


@pytest.mark.parametrize("width", [80])
def test_chat(width: int) -> None:
    """What was said before counts until it is forgotten; an interrupted answer is kept as far as it came."""
    typed = "Hello\n/base\nAnd then?\ninterrupt\nMore?\n/reset\n/base\n/system Be kind\nHello\n/what\n"
    check_snapshot("chat", seen(width, "chat", "latest", typed=typed), width)


@pytest.mark.parametrize("width", [80, 120])
def test_the_end_of_the_demonstration(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in terminal_environment(width).items():
        monkeypatch.setenv(name, value)
    answers = [("Are you a robot?", "I'm a robot.\nI'm a robot.\nI' …", "[i]I am a robot.")]
    answers += [("What is money?", SIMPLE + "…", "A unit of account.")]
    monkeypatch.setattr("gemfleet.launcher.ask.demo.before_and_after", lambda folder: iter(answers))
    config = load_config(REPOSITORY / "examples" / "demo.yaml")
    outcome = Outcome(RUN_ID, RunState.SUCCEEDED, Path("/runs/a/output"), False, {"total_steps": 51})
    launch_here._print_demo(outcome, config)
    check_snapshot("demo-end", capsys.readouterr().out, width)
    other = config.model_copy(update={"train": config.train.model_copy(update={"model": "./mine"})})
    launch_here._print_demo(outcome, other)
    assert not capsys.readouterr().out
