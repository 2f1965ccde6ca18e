"""Which ways to train a search tries, and when, from what the plan says fits."""

from __future__ import annotations

from typing import Any

import pytest
from gemfleet.train.batch_finder.setting import with_variant
from gemfleet.train.batch_finder.variants import variants_of
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.planning import SIZES
from gemfleet.train.planning.auto_strategy import Option, RankDevices, settle_strategy

GIB = 2**30


def settled(gibibytes: float, **train: Any) -> tuple[TrainConfig, tuple[Option, ...]]:
    values = {"model": "x", "data": {"train": "y"}, **train}
    devices = RankDevices(4, int(gibibytes * GIB), "cuda", "bf16")
    found = settle_strategy(TrainConfig.model_validate(values), SIZES["4b"], devices)
    return found.config, found.options


def tried(config: TrainConfig, options: tuple[Option, ...] = ()) -> list[tuple[str, str | None]]:
    return [(variant.name, variant.if_limited) for variant in variants_of(config, options)]


@pytest.mark.parametrize("chosen", [{}, {"activation_checkpointing": "off"}])
def test_recomputing_is_tried_only_where_nobody_chose(chosen: dict[str, Any]) -> None:
    values = {"model": "x", "data": {"train": "y"}, "strategy": "ddp", **chosen}
    more = [] if chosen else [("ddp, selective", "ddp")]
    assert tried(TrainConfig.model_validate(values)) == [("ddp", None), *more]


def test_an_open_strategy_is_tried_where_the_plan_says_that_it_fits() -> None:
    assert tried(*settled(80)) == [
        ("ddp", None),
        ("ddp, loss in chunks of 512 rows", "ddp"),
        ("ddp, selective", "ddp"),
        ("fsdp2, kept gathered", "ddp"),
        ("fsdp2", "fsdp2, kept gathered"),
        ("fsdp2, kept gathered, selective", "fsdp2, kept gathered"),
        ("fsdp2, selective", "fsdp2"),
    ]


def test_what_does_not_fit_by_the_plan_is_not_tried() -> None:
    config, options = settled(9)
    names = [name for name, _ in tried(config, options)]
    assert config.strategy == "fsdp2"
    assert not [name for name in names if name.startswith("ddp")]
    assert variants_of(config, options)[0].if_limited is None


def test_a_strategy_that_a_person_chose_stays() -> None:
    names = [name for name, _ in tried(*settled(80, strategy="fsdp2", loss_chunk_rows=2048))]
    assert names == ["fsdp2, kept gathered", "fsdp2", "fsdp2, kept gathered, selective", "fsdp2, selective"]
    assert [name for name, _ in tried(*settled(80, strategy="ddp", loss_chunk_rows=2048))] == ["ddp", "ddp, selective"]
    assert next(name for name, _ in tried(*settled(80, activation_checkpointing="full"))) == "ddp, full"


def test_the_loss_of_a_divided_base_goes_in_chunks_by_the_plan_and_in_smaller_ones_by_a_trial() -> None:
    roomy, options = settled(80, strategy="fsdp2")
    assert roomy.loss_chunk_rows == 2048
    (smaller,) = [variant for variant in variants_of(roomy, options) if "loss" in variant.name]
    assert (smaller.name, smaller.if_limited) == (
        "fsdp2, kept gathered, loss in chunks of 512 rows",
        "fsdp2, kept gathered",
    )
    assert with_variant(roomy, smaller.changes).loss_chunk_rows == 512
    tight, _ = settled(12, strategy="fsdp2", activation_checkpointing="off")
    assert tight.loss_chunk_rows == 512


def test_a_variant_sets_all_that_it_stands_for() -> None:
    config, options = settled(80)
    by_name = {variant.name: with_variant(config, variant.changes) for variant in variants_of(config, options)}
    chosen = by_name["fsdp2, kept gathered, selective"]
    assert (chosen.strategy, chosen.activation_checkpointing) == ("fsdp2", "selective")
    assert chosen.fsdp2.reshard_after_forward is False
    assert by_name["fsdp2"].fsdp2.reshard_after_forward is True
    assert (by_name["ddp"].strategy, by_name["ddp"].activation_checkpointing) == ("ddp", "off")


def test_recomputing_is_tried_with_compiled_layers_too() -> None:
    config, options = settled(80)
    assert config.compiles_on_cuda("ddp")
    assert "ddp, selective" in [variant.name for variant in variants_of(config, options)]
