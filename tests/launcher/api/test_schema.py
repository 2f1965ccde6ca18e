"""schemathesis against the live server: every documented operation, all checks, and walks along the links."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gemfleet.launcher.api.settings import Tokens
from support.servers.api_live import Live, serve

pytest.importorskip("schemathesis", reason="needs the packages of the dev extra")
# A JSON schema cannot say what a valid configuration is, so a refusal of one is an expected answer.
SETTINGS = """
[[operations]]
include-name = "POST /api/v1/runs"
checks.positive_data_acceptance.expected-statuses = [201, 422]
"""
TOKENS = Tokens(read="r" * 43, admin="a" * 43)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Live]:
    """Streams end at once, so that a walk may open them on runs that never end."""
    yield from serve(tmp_path, TOKENS, stream_seconds=0.05)


def test_every_answer_is_documented_and_none_is_an_error_of_ours(guarded: Live, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(SETTINGS)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "settings.toml", "run"]
    command += [f"{guarded.url}/api/v1/openapi.json"]
    command += ["--checks", "all", "--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "5"]
    command += ["--header", f"Authorization: Bearer {TOKENS.admin}", "--seed", "1", "--no-color", "--workers", "1"]
    command += ["--request-timeout", "10", "--suppress-health-check", "all", "--continue-on-failure"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
