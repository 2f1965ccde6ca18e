"""A run knows of its pictures before it reads them, and chooses its strategy with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.plan.this_machine import settled_here
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.data import DataConfig
from gemfleet.train.data.pictures.peek import holds_pictures
from gemfleet.train.planning import SIZES
from gemfleet.train.planning.auto_strategy import RankDevices, settle_strategy
from support.pictures import QUESTION, chat, seeing_model, written

GIB = 2**30
TEXT = chat(QUESTION, "a cat")
PART = chat([{"type": "image", "path": "nowhere.png"}, {"type": "text", "text": QUESTION}], "a cat")


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([TEXT], False),
        ([TEXT, PART], True),
        ([TEXT | {"images": ["nowhere.png"]}], True),
        ([TEXT | {"image": "nowhere.png"}], True),
        ([TEXT | {"images": []}], False),
        ([TEXT] * 150 + [PART], False),  # only the first rows are read
        ([{"neither": 1}], False),
    ],
)
def test_the_first_rows_tell(tmp_path: Path, rows: list[dict[str, Any]], found: bool) -> None:
    assert holds_pictures(DataConfig(train=str(written(tmp_path, *rows)))) is found


def test_an_evaluation_set_counts_and_a_missing_file_does_not(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    train, scored = written(tmp_path / "text", TEXT), written(tmp_path, PART)
    assert holds_pictures(DataConfig(train=str(train), eval=str(scored)))
    assert not holds_pictures(DataConfig(train=str(tmp_path / "nowhere.jsonl")))
    assert not holds_pictures(DataConfig(train="owner/pictures"), hub=False)


def test_the_plan_counts_them(tmp_path: Path) -> None:
    """A tower that runs in each step leaves less room: layers are computed again, or divided."""

    def chosen(gibibytes: float, pictures: bool, **train: Any) -> tuple[str, float]:
        config = TrainConfig.model_validate({"model": "x", "data": {"train": "x"}, "vision": {"cache": "off"}, **train})
        plan = settle_strategy(config, SIZES["4b"], RankDevices(2, int(gibibytes * GIB), "cuda", "bf16"), pictures)
        assert plan.pictures is pictures
        return plan.sharing.__str__(), plan.facts["predicted_memory_bytes"]["weights"] / GIB

    without, seeing = chosen(80, False), chosen(80, True)
    assert 0.7 < seeing[1] - without[1] < 1.0
    assert any(chosen(size / 4, False)[0] != chosen(size / 4, True)[0] for size in range(40, 80))
    learning = chosen(80, True, vision={"cache": "off", "train": "projector"})
    assert 0.03 < learning[1] - seeing[1] < 0.1


def test_a_run_here_is_planned_with_them(tmp_path: Path) -> None:
    model = seeing_model(tmp_path / "model")

    def planned(*rows: dict[str, Any]) -> bool:
        train = {"model": str(model), "data": {"train": str(written(tmp_path, *rows)), "max_length": 64}}
        config = LaunchConfig.model_validate({"train": train, "cluster": {"address": "local", "workers": 1}})
        machine = {"machine": "x86_64", "cores": 2, "memory": 16 * GIB, "container": None, "bf16_gains": False}
        plan = settled_here(config, machine | {"gpus": []})
        assert plan is not None
        return plan.pictures

    assert (planned(PART), planned(TEXT)) == (True, False)
