"""Pictures of a terminal in files. `GEMFLEET_SNAPSHOTS=write` writes them anew, to be looked at before a commit."""

from __future__ import annotations

import os
import re

from support.places import TESTS

FOLDER = TESTS / "snapshots"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


def plain(text: str) -> str:
    """What a person sees: no colours, no spaces at the ends of lines."""
    return "\n".join(line.rstrip() for line in CONTROL.sub("", text).splitlines()).strip("\n") + "\n"


def check_snapshot(name: str, text: str, width: int) -> None:
    """The picture `<name>-<width>.txt` equals this output of a terminal, whose lines all fit."""
    path, seen = FOLDER / f"{name}-{width}.txt", plain(text)
    if os.environ.get("GEMFLEET_SNAPSHOTS") == "write":
        path.write_text(seen, encoding="utf-8")
    assert seen == path.read_text(encoding="utf-8")
    assert max(map(len, seen.splitlines())) <= width


def terminal_environment(width: int) -> dict[str, str]:
    """Variables by which a command takes its output for a terminal of this width."""
    return {"COLUMNS": str(width), "LINES": "40", "TTY_COMPATIBLE": "1", "NO_COLOR": "1", "TERM": "xterm", "TZ": "UTC"}
