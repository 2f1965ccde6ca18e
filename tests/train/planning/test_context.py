"""What the plan makes of ranks that share each pass: memory, time, and the least number with which a row fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.planning import GPUS, SIZES, Fleet, Sharing, Workload, choose_strategy, expected_speed
from gemfleet.train.planning.auto_strategy import RankDevices, settle_strategy
from gemfleet.train.planning.context import contexts, exchanged_bytes, mask_kept, received_bytes, shares
from gemfleet.train.planning.memory import memory_per_rank

GIB = 2**30
LONG = Workload(length=65536, quantization="int4")


def config(**changes: object) -> TrainConfig:
    values = {"model": "x", "data": {"train": "x.jsonl", "max_length": 65536}, "quantization": "int4"}
    return TrainConfig.model_validate({**values, **changes})


def devices(ranks: int, gigabytes: float) -> RankDevices:
    return RankDevices(ranks, int(gigabytes * GIB), "cuda", "bf16")


def test_activations_fall_with_the_ranks_that_share_a_pass_by_more_than_what_they_exchange() -> None:
    kept = [
        memory_per_rank(SIZES["4b"], LONG, Sharing("ddp", context=size), ranks=8).activations for size in (1, 2, 4, 8)
    ]
    for size, more, less in zip((2, 4, 8), kept[:-1], kept[1:], strict=True):
        assert less < 0.65 * more, size
        assert less > kept[0] / size


def test_ranks_share_no_rows_with_pictures() -> None:
    assert contexts("auto", LONG, Fleet(8)) == [1, 2, 4, 8]
    assert contexts("auto", replace(LONG, pictures="kept"), Fleet(8)) == [1]


def test_a_row_of_short_documents_exchanges_next_to_nothing() -> None:
    long, short = LONG, Workload(length=65536, example_tokens=512)
    sharing = Sharing("ddp", context=4)
    assert exchanged_bytes(SIZES["1b"], short, sharing) < 0.1 * exchanged_bytes(SIZES["1b"], long, sharing)


def test_one_document_exchanges_windows_in_sliding_layers_and_all_before_it_in_global_ones() -> None:
    shape, sharing = SIZES["1b"], Sharing("ddp", context=2)
    first, second = shares(shape, LONG, 2)
    assert received_bytes(shape, LONG, sharing, first) == 0
    tokens = shape.sliding_layers * (shape.window - 1) + (shape.layers - shape.sliding_layers) * first.tokens
    assert received_bytes(shape, LONG, sharing, second) == 2 * tokens * 2 * shape.keys * 2
    again = received_bytes(shape, LONG, Sharing("ddp", "full", context=2), second)
    assert again == 3 * tokens * 2 * shape.keys * 2


def test_the_step_waits_for_exchanges_and_longer_over_a_network() -> None:
    near, far = Fleet(16, ranks_per_node=16), Fleet(16, ranks_per_node=8)
    waits = [
        expected_speed(SIZES["4b"], LONG, Sharing("ddp", context=size), GPUS["h100"], fleet).communication_seconds
        for size, fleet in ((1, near), (16, near), (16, far))
    ]
    assert waits == sorted(waits)
    assert waits[0] < waits[1] < waits[2]


def test_auto_takes_the_fewest_ranks_with_which_a_row_fits() -> None:
    found = {}
    for gigabytes in (14, 18.5, 24, 192):  # with 18.5, two ranks fit by very small chunks of the loss alone
        settled = settle_strategy(config(context_parallel="auto"), SIZES["4b"], devices(8, gigabytes))
        size = found[gigabytes] = settled.config.context_size
        assert {option.choice.sharing.context for option in settled.options} == {size}
        assert settled.facts["context_parallel"] == size
        if size > 1:
            fewer = choose_strategy(SIZES["4b"], LONG, Fleet(8), int(gigabytes * GIB), context=size // 2)
            assert not fewer.fits
    assert found[14] > found[18.5] == found[24] > found[192] == 1


def test_a_number_stays_and_must_divide_the_ranks() -> None:
    settled = settle_strategy(config(context_parallel=2), SIZES["4b"], devices(8, 192))
    assert settled.config.context_size == settled.sharing.context == 2
    assert "2 ranks for each pass" in settled.sentence
    with pytest.raises(UserError, match=r"context_parallel is 3, but 8 ranks .* multiple of 3 ranks"):
        settle_strategy(config(context_parallel=3), SIZES["4b"], devices(8, 192))


def test_a_row_too_long_for_one_device_is_told_what_would_hold_it() -> None:
    alone = choose_strategy(SIZES["4b"], LONG, Fleet(1), 24 * GIB)
    assert "set train.context_parallel to" in alone.reason
    together = choose_strategy(SIZES["4b"], LONG, Fleet(8), 24 * GIB)
    assert "; set train.context_parallel to" in together.reason


def test_a_strategy_left_to_the_plan_is_a_remedy_for_the_ranks_that_share_a_pass() -> None:
    asked = config(strategy="ddp", activation_checkpointing="off", context_parallel=8)
    sentence = settle_strategy(asked, SIZES["4b"], devices(8, 12)).sentence
    assert "; leave train.strategy and train.activation_checkpointing at auto (" in sentence
    assert "by ddp, full activation checkpointing, 8 ranks for each pass)" in sentence


def test_rows_with_pictures_are_not_shared() -> None:
    assert contexts("auto", LONG, Fleet(8)) == [1, 2, 4, 8]
    assert contexts("auto", replace(LONG, pictures="kept"), Fleet(8)) == [1]


def test_only_fp32_keeps_a_mask_of_a_document_that_began_in_an_earlier_share() -> None:
    last = shares(SIZES["1b"], LONG, 4)[-1]
    assert mask_kept(LONG, last) == 0
    assert mask_kept(replace(LONG, dtype="fp32"), last) == last.tokens * LONG.tokens * 4
