"""FLOPs, ceilings and communication."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gemfleet.train.planning import GPUS, SIZES, Fleet, ModelShape, Sharing, Workload, expected_speed
from gemfleet.train.planning.devices import Device
from gemfleet.train.planning.options import Checkpointing, SharingName
from gemfleet.train.planning.speed import lora_flops_per_token, mean_context, recomputed_flops_per_token
from hypothesis import given, settings
from hypothesis import strategies as st

ROW = Workload(length=2048)


@pytest.mark.parametrize(
    ("size", "all_scored", "quarter_scored", "recomputed"),
    [
        ("270m", 650e3, 1.11e6, 0.20),
        ("1b", 186e3, 236e3, 0.34),
        ("4b", 48.3e3, 55.0e3, 0.41),
        ("12b", 16.0e3, 17.0e3, 0.45),
        ("27b", 7.1e3, 7.4e3, 0.47),
    ],
)
def test_ceilings_of_an_h200(size: str, all_scored: float, quarter_scored: float, recomputed: float) -> None:
    """Tokens per second at the 790 TFLOP/s that it reaches, computed by hand elsewhere."""
    shape, device = SIZES[size], GPUS["h200"]
    assert expected_speed(shape, ROW, Sharing("ddp"), device, Fleet()).ceiling == pytest.approx(all_scored, rel=0.01)
    quarter = expected_speed(shape, replace(ROW, supervised=0.25), Sharing("ddp"), device, Fleet())
    assert quarter.ceiling == pytest.approx(quarter_scored, rel=0.01)
    added = recomputed_flops_per_token(shape, ROW, Sharing("ddp", "full")) / lora_flops_per_token(shape, ROW)
    assert added == pytest.approx(recomputed, abs=0.01)


@settings(deadline=None)
@given(st.integers(1, 300), st.one_of(st.none(), st.integers(1, 400)))
def test_mean_context_is_what_counting_gives(document: int, window: int | None) -> None:
    seen = [min(position + 1, window or document) for position in range(document)]
    assert mean_context(document, window) == pytest.approx(sum(seen) / document)


@settings(deadline=None)
@given(
    st.sampled_from(list(SIZES.values())),
    st.sampled_from(["ddp", "fsdp2", "zero1", "zero2", "zero3"]),
    st.sampled_from(["off", "selective", "full"]),
    st.integers(1, 512),
    st.integers(1, 4096),
    st.sampled_from(list(GPUS.values())),
)
def test_nothing_beats_the_ceiling(
    shape: ModelShape, name: SharingName, checkpointing: Checkpointing, ranks: int, global_batch: int, device: Device
) -> None:
    work = Workload(global_batch=global_batch)
    speed = expected_speed(shape, work, Sharing(name, checkpointing), device, Fleet(ranks))
    assert 0 < speed.expected < speed.ceiling
    assert speed.step_seconds == speed.compute_seconds + speed.communication_seconds
    assert speed.share_of_ceiling == pytest.approx(speed.expected / speed.ceiling)


def test_ranks_without_work_cost_speed() -> None:
    """Eight examples on sixteen GPUs keep half of them waiting."""
    work = Workload(global_batch=8)
    rates = [
        expected_speed(SIZES["4b"], work, Sharing("ddp"), GPUS["h100"], Fleet(ranks, 16)).expected for ranks in (8, 16)
    ]
    assert rates[1] == pytest.approx(rates[0] / 2, rel=0.01)


def test_a_slow_network_costs_more_where_the_base_is_divided() -> None:
    fleets = [Fleet(16, 8, gbit) for gbit in (400.0, 10.0)]
    kept = {}
    for name in ("ddp", "fsdp2"):
        fast, slow = (
            expected_speed(SIZES["12b"], Workload(global_batch=64), Sharing(name), GPUS["h100"], fleet).expected
            for fleet in fleets
        )
        kept[name] = slow / fast
    assert kept["fsdp2"] < kept["ddp"] < 1


def test_short_rows_wait_for_the_weights() -> None:
    """Half the tokens in a pass take as long, once reading the weights takes longer than computing with them."""
    seconds = [
        expected_speed(
            SIZES["4b"], Workload(length=length, global_batch=4), Sharing("ddp"), GPUS["h200"], Fleet()
        ).compute_seconds
        for length in (16, 32, 4096)
    ]
    assert seconds[0] == seconds[1] < seconds[2]


def test_every_size_of_memory_is_in_the_table() -> None:
    memories = [gpu.memory_bytes for gpu in GPUS.values()]
    assert (min(memories), max(memories)) == (16 * 10**9, 192 * 10**9)
    assert all(gpu.source and gpu.tflops > 0 and gpu.link_gb_s > 0 for gpu in GPUS.values())
