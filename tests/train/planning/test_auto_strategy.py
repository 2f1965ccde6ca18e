"""What `strategy: auto` settles on, from the devices that the ranks have."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.local.devices import settle_here
from gemfleet.train.planning import SIZES
from gemfleet.train.planning.auto_strategy import (
    RankDevices,
    fitting_strategies,
    is_open,
    needs,
    settle_strategy,
    settled_blindly,
)
from support.tiny_model import save_tiny_gemma3

GB = 10**9
FOUR = RankDevices(ranks=4, memory_bytes=80 * GB, kind="cuda", dtype="bf16")


def config(**train: Any) -> TrainConfig:
    """With nothing named but `train`."""
    return TrainConfig.model_validate({"model": "x", "data": {"train": "x.jsonl"}, **train})


def with_memory(gigabytes: float) -> RankDevices:
    return dataclasses.replace(FOUR, memory_bytes=int(gigabytes * GB))


def test_ddp_where_the_base_fits_and_why() -> None:
    settled = settle_strategy(config(), SIZES["4b"], FOUR)
    assert (settled.config.strategy, settled.config.activation_checkpointing) == ("ddp", "off")
    assert settled.sentence.startswith("strategy for 4 ranks: ddp: the whole base fits on every rank")
    assert settled.sentence.endswith("; activation checkpointing is off")
    assert settled.facts["asked"] == "auto"
    assert settled.facts["strategy"] == "ddp"
    assert settled.facts["predicted_memory_bytes"]["total"] < 80 * GB
    assert settled.facts["fitting"] == [option.name for option in settled.options]


def test_the_base_is_divided_where_it_must_be_and_kept_gathered_where_it_can() -> None:
    settled = settle_strategy(config(), SIZES["27b"], with_memory(48))
    assert settled.config.strategy == "fsdp2"
    assert settled.config.fsdp2.reshard_after_forward is True
    assert not is_open(settled.config)
    assert "with the whole base on every rank" in settled.sentence


def test_every_option_that_fits_comes_in_order_and_replaces_any_other() -> None:
    asked = config()
    options = fitting_strategies(asked, SIZES["4b"], FOUR)
    assert [option.name for option in options[:4]] == [
        "ddp",
        "ddp, selective activation checkpointing",
        "ddp, full activation checkpointing",
        "fsdp2, kept gathered",
    ]
    first, last = (asked.model_copy(update=dict(option.changes)) for option in (options[0], options[-1]))
    assert (last.strategy, last.activation_checkpointing) == ("fsdp2", "full")
    assert last.model_copy(update=dict(options[0].changes)) == first.model_copy(update={"fsdp2": last.fsdp2})
    assert fitting_strategies(asked, SIZES["27b"], with_memory(4)) == []


@pytest.mark.parametrize("mode", ["off", "full"])
def test_what_a_person_has_set_stays(mode: str) -> None:
    asked = config(activation_checkpointing=mode, fsdp2={"reshard_after_forward": True})
    modes = {o.choice.sharing.checkpointing for o in fitting_strategies(asked, SIZES["4b"], FOUR)}
    kept = {o.choice.sharing.reshard for o in fitting_strategies(asked, SIZES["4b"], FOUR)}
    assert (modes, kept) == ({mode}, {True})


@pytest.mark.parametrize(("gigabytes", "reshard"), [(80, False), (16, True), (2, True)])
def test_fsdp2_asked_for_settles_only_whether_layers_stay_gathered(gigabytes: float, reshard: bool) -> None:
    asked = config(strategy="fsdp2", activation_checkpointing="off")
    settled = settle_strategy(asked, SIZES["12b"], with_memory(gigabytes))
    assert settled.config.strategy == "fsdp2"
    assert settled.config.fsdp2.reshard_after_forward is reshard
    assert settled.config.activation_checkpointing == "off"


ZERO3 = {"strategy": "deepspeed", "deepspeed": {"stage": 3}}


@pytest.mark.parametrize("named", [{"strategy": "ddp"}, {"strategy": "fsdp2"}, ZERO3], ids=["ddp", "fsdp2", "zero3"])
def test_a_named_strategy_recomputes_as_little_as_memory_needs(named: dict[str, Any]) -> None:
    """By the rows that a pass is to hold; the strategy stays, even where nothing fits."""
    asked = config(**named, batch={"micro": 32})
    found = [settle_strategy(asked, SIZES["4b"], with_memory(gigabytes)) for gigabytes in (800, 120, 2)]
    assert [settled.config.activation_checkpointing for settled in found] == ["off", "selective", "full"]
    assert {settled.config.strategy for settled in found} == {named["strategy"]}
    assert not any(is_open(settled.config) for settled in found)
    assert "activation checkpointing" in found[1].sentence
    assert "nothing fits" in found[2].sentence


def test_nothing_is_compiled_that_was_to_be_compiled_under_a_strategy_that_cannot() -> None:
    asked = config(compile=True)
    assert {option.choice.sharing.name for option in fitting_strategies(asked, SIZES["4b"], FOUR)} == {"ddp"}


def test_scoring_alone_is_not_refused_for_what_training_would_take() -> None:
    assert settle_strategy(config(max_steps=0), SIZES["27b"], with_memory(24)).config.strategy == "fsdp2"


def test_devices_that_say_nothing_get_the_simplest_choice() -> None:
    found = settled_blindly(config())
    assert (found.strategy, found.activation_checkpointing) == ("ddp", "off")
    assert settled_blindly(config(strategy="fsdp2", activation_checkpointing="full")) == config(
        strategy="fsdp2", activation_checkpointing="full"
    )


def test_a_quantised_base_is_replicated() -> None:
    settled = settle_strategy(config(quantization="int4"), SIZES["27b"], with_memory(48))
    assert settled.config.strategy == "ddp"


def test_an_untied_head_is_not_divided() -> None:
    shape = dataclasses.replace(SIZES["4b"], tied=False)
    assert {o.choice.sharing.name for o in fitting_strategies(config(), shape, FOUR)} == {"ddp"}


def test_nothing_fits_names_a_remedy() -> None:
    with pytest.raises(
        UserError, match=r"train.strategy is auto, but nothing fits: .*; use 8 GPUs \(.*; or name a strat"
    ):
        settle_strategy(config(), SIZES["27b"], with_memory(24))


def test_modules_by_full_names_count_as_all() -> None:
    asked = config(strategy="fsdp2", lora={"target_modules": ["model.layers.0.self_attn.q_proj"]})
    assert settle_strategy(asked, SIZES["4b"], FOUR).config.fsdp2.reshard_after_forward is False


def test_needs_name_every_way() -> None:
    sentence = needs(config(), SIZES["4b"], 4, "cuda")
    assert sentence.startswith("auto: the first that fits a rank's device, of (GiB) ddp ")
    assert "fsdp2, kept gathered" in sentence


def test_one_process_settles_by_this_machine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_tiny_gemma3(tmp_path)
    with caplog.at_level(logging.INFO, "gemfleet.train"):
        train, settled = settle_here(config(), tmp_path, 0, 1)
    assert train.strategy == "ddp"
    assert settled is not None
    assert settled.options[0].name == "ddp"
    assert "strategy for 1 rank: ddp: the whole base fits" in caplog.text
