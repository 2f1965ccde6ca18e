"""The bars of transformers, which would stand in a plain log as lines of control characters."""

from __future__ import annotations

from pathlib import Path

import pytest
from gemfleet.train.quiet import without_bars
from support.tiny_model import tiny_gemma3


def test_nothing_is_drawn_while_a_model_is_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_gemma3()
    with without_bars():
        model.save_pretrained(tmp_path / "quiet")
    assert "Writing model shards" not in capfd.readouterr().err
    model.save_pretrained(tmp_path / "loud")
    assert "Writing model shards" in capfd.readouterr().err
