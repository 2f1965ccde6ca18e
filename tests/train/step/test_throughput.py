"""The throughput record: three counts of tokens that are never mixed, and utilisation by LoRA's FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.recipe import LoraConfig
from gemfleet.train.interfaces import Ints, PackedRows, Pixels, StepRows, WriteCheckpoint, no_pictures
from gemfleet.train.loop import Trainer
from gemfleet.train.model.gemma import TrainableModel, attach_lora
from gemfleet.train.strategies import build_strategy
from support.step_records import a_step
from support.tiny_model import tiny_gemma3

TOKENS, SUPERVISED, PADDED = 16, 5, 64
STEP = a_step()


def test_rates_are_their_own_count_over_the_same_seconds() -> None:
    record = STEP.to_dict()
    assert record["raw_tokens_per_second"] == 400
    assert record["tokens_per_second"] == 100
    assert record["supervised_tokens_per_second"] == 25
    assert record["tokens_per_second_per_rank"] == 25


def test_utilisation_is_of_all_ranks_devices_and_unknown_without_a_data_sheet() -> None:
    record = STEP.to_dict()
    assert record["flops_per_second_per_rank"] == 1e12
    assert record["mfu"] == pytest.approx(0.10)
    assert record["hfu"] == pytest.approx(0.125)
    unknown = a_step(rated_flops_per_second=None).to_dict()
    assert (unknown["mfu"], unknown["hfu"]) == (None, None)


class OneStep:
    """Documents of 10 and 6 tokens in one row, five of them scored; and a reporter that keeps the step's record."""

    steps_per_epoch, eval_sets, pictures = 1, (), no_pictures()

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}

    def step(self, epoch: int, step_in_epoch: int, rank: int) -> StepRows:
        supervised = np.zeros(TOKENS, np.bool_)
        supervised[[7, 8, 9, 14, 15]] = True
        rows = PackedRows(
            np.arange(3, 3 + TOKENS, dtype=np.int32), supervised, np.array([10, 6], np.int32), np.array([2], np.int32)
        )
        return StepRows(rows, 2, TOKENS, SUPERVISED)

    def eval_rows(self, rank: int, name: str) -> PackedRows:
        raise AssertionError("nothing is evaluated")

    def pixels(self, ids: Ints) -> Pixels:
        raise KeyError("no pictures")

    def log_step(self, record: Mapping[str, Any]) -> None:
        self.record = dict(record)

    def save_checkpoint(self, step: int, write: WriteCheckpoint | None, metrics: Mapping[str, float]) -> None:
        """Kept nowhere."""

    def progress(self, phase: str) -> None:
        """Nobody watches."""

    def finish(self) -> None:
        """Nothing is under way."""

    def latest_checkpoint(self, destination: Path) -> Path | None:
        return None

    def should_stop(self) -> bool:
        return False


def trained_step(folder: Path) -> dict[str, Any]:
    config = TrainConfig.model_validate(
        {
            "model": "tiny",
            "data": {"train": "in memory", "max_length": TOKENS},
            "batch": {"global": 2, "micro": 1},
            "strategy": "ddp",
            "activation_checkpointing": "off",
            "precision": "fp32",
        }
    )
    model = attach_lora(tiny_gemma3().requires_grad_(False), LoraConfig(r=4), seed=0, base_name="tiny")
    world = OneStep()
    Trainer(config, model, build_strategy(config), world, world, rank=0, work_folder=folder).run()
    return world.record


def test_three_quarters_of_padding_change_the_raw_count_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained_step(tmp_path)
    monkeypatch.setattr(TrainableModel, "computed_tokens", lambda *_: PADDED)
    padded = trained_step(tmp_path)
    for record, raw in ((plain, TOKENS), (padded, PADDED)):
        assert (record["raw_tokens"], record["tokens"], record["supervised_tokens"]) == (raw, TOKENS, SUPERVISED)
        for name in ("raw_tokens", "tokens", "supervised_tokens"):
            assert record[f"{name}_per_second"] == pytest.approx(record[name] / record["step_seconds"])
    assert 1 - padded["tokens"] / padded["raw_tokens"] == 0.75
    assert (plain["padding_share"], padded["padding_share"]) == (0.0, 0.75)
    assert padded["flops"] == plain["flops"] > 0
    assert padded["loss"] == pytest.approx(plain["loss"], rel=1e-5)
