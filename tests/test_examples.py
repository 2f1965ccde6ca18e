"""The files under examples/ are what they say they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from gemfleet.launcher.config.load import load_config
from gemfleet.launcher.config.schema import LaunchConfig
from support.places import EXAMPLES


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_example_is_valid(path: Path) -> None:
    load_config(path)


def test_full_example_shows_every_field_with_its_default() -> None:
    shown = yaml.safe_load((EXAMPLES / "full.yaml").read_text())
    config = load_config(EXAMPLES / "full.yaml")
    assert field_names(shown) == field_names(config.model_dump(mode="json", by_alias=True))
    minimal = {"name": "full-example", "train": {"model": "demo", "data": {"train": "demo"}}}
    assert config == LaunchConfig.model_validate(minimal)


def test_example_data_has_the_columns_it_claims() -> None:
    columns = {path.name: data_columns(path) for path in (EXAMPLES / "data").iterdir()}
    assert columns == {
        "chat.jsonl": {"messages"},
        "korean-finance.jsonl": {"text"},
        "questions.jsonl": {"prompt", "completion"},
    }


def test_the_korean_example_has_its_rows_each_once() -> None:
    lines = (EXAMPLES / "data" / "korean-finance.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert len(set(texts)) == len(texts) >= 200
    assert all(text.count("<start_of_turn>") == text.count("<end_of_turn>") == 2 for text in texts)


def field_names(section: dict[str, Any], prefix: str = "") -> set[str]:
    names = set()
    for key, value in section.items():
        names |= field_names(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return names


def data_columns(path: Path) -> set[str]:
    return {column for line in path.read_text().splitlines() for column in json.loads(line)}
