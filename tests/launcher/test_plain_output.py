"""A terminal obeys our own bars and tables, and nothing else."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gemfleet.launcher.plain_output import plain
from rich.console import Console
from rich.progress import track

HOSTILE = "a\x1b]0;owned\x07b\x1bP1$r\x1b\\c\x9b31md\u202e\x1b[6n\x08"


class Screen(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_control_sequences_of_others_are_written_out(is_terminal: bool) -> None:
    screen = Screen(is_terminal)
    print(HOSTILE, file=plain(screen))
    for sequence in ("\x1b]", "\x1bP", "\x9b", "\u202e", "\x1b[6n", "\x07", "\x08"):
        assert sequence not in screen.getvalue()
    assert "\\x1b]0;owned\\x07b" in screen.getvalue()


def test_colours_and_bars_of_our_own_reach_a_terminal_only() -> None:
    shown = {}
    for is_terminal in (True, False):
        screen = Screen(is_terminal)
        console = Console(file=plain(screen), force_terminal=True)
        console.print("[red]word")
        list(track(range(2), console=console))
        shown[is_terminal] = screen.getvalue()
    assert "\x1b[31m" in shown[True]
    assert "\\x1b" not in shown[True]
    assert "\x1b" not in shown[False]


def test_names_in_files_do_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    """From a configuration's key, a data column and a model's type."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"\x1b]0;owned\x07column": "x"}) + "\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "\x1b]0;owned\x07type"}))
    (tmp_path / "run.json").write_text(
        json.dumps({"train": {"model": "demo", "data": {"train": str(tmp_path / "rows.jsonl")}}, "\x1b]0;owned\x07": 1})
    )
    environment = {**os.environ, "GEMFLEET_HOME": str(tmp_path / "home")}
    for arguments in (
        ["train", "run.json", "--dry-run"],
        ["train", "\x1b]0;owned\x07.yaml"],
        ["show", "\x1b]0;owned\x07"],
    ):
        command = [sys.executable, "-m", "gemfleet.launcher.cli", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
        assert done.returncode == 2
        assert b"owned" in done.stderr
        assert b"\x1b" not in done.stdout + done.stderr
