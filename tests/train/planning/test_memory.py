"""The memory model as a whole: it adds up, grows with the work, and shrinks with sharing."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from gemfleet.train.planning import SIZES, ModelShape, Sharing, Workload, memory_per_rank
from gemfleet.train.planning.activations import (
    adapter_copies_of_layer,
    kept_by_layer_compiled,
    kept_by_layer_selective,
)
from gemfleet.train.planning.memory import activation_bytes, sight_bytes, weight_bytes
from gemfleet.train.planning.options import CHECKPOINTING, Checkpointing, DeviceKind, SharingName
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES: tuple[SharingName, ...] = ("ddp", "fsdp2", "zero1", "zero2", "zero3")

works = st.builds(
    Workload,
    length=st.integers(2, 8192),
    micro=st.integers(1, 16),
    supervised=st.floats(0, 1),
    lora_rank=st.sampled_from([1, 8, 16, 64]),
    dtype=st.sampled_from(["bf16", "fp32"]),
    quantization=st.sampled_from(["none", "int8", "int4"]),
    pictures=st.sampled_from(["none", "kept", "anew"]),
)
shapes = st.sampled_from(list(SIZES.values()))
sharings = st.builds(Sharing, st.sampled_from(NAMES), st.sampled_from(CHECKPOINTING), st.booleans())
ranks = st.integers(1, 512)
devices = st.sampled_from(["cpu", "cuda"])


@settings(deadline=None)
@given(shapes, works, sharings, ranks, devices)
def test_the_total_is_the_sum_of_its_parts_and_no_part_is_negative(
    shape: ModelShape, work: Workload, sharing: Sharing, ranks: int, device: DeviceKind
) -> None:
    parts = memory_per_rank(shape, work, sharing, ranks, device)
    assert parts.total == sum(asdict(parts).values())
    assert min(asdict(parts).values()) >= 0


@settings(deadline=None)
@given(shapes, works, sharings, ranks, devices)
def test_more_work_never_takes_less(
    shape: ModelShape, work: Workload, sharing: Sharing, ranks: int, device: DeviceKind
) -> None:
    base = memory_per_rank(shape, work, sharing, ranks, device).total
    longer = replace(work, length=work.length + 1)
    wider = replace(work, micro=work.micro + 1)
    ranked = replace(work, lora_rank=work.lora_rank + 1)
    assert memory_per_rank(shape, longer, sharing, ranks, device).total > base
    assert memory_per_rank(shape, wider, sharing, ranks, device).total > base
    assert memory_per_rank(shape, ranked, sharing, ranks, device).total > base


@settings(deadline=None)
@given(works, sharings, ranks, devices)
def test_larger_models_take_more(work: Workload, sharing: Sharing, ranks: int, device: DeviceKind) -> None:
    totals = [memory_per_rank(shape, work, sharing, ranks, device).total for shape in SIZES.values()]
    assert totals == sorted(totals)


@settings(deadline=None)
@given(shapes, works, ranks, devices)
def test_what_is_divided_never_outgrows_what_is_replicated(
    shape: ModelShape, work: Workload, ranks: int, device: DeviceKind
) -> None:
    replicated = memory_per_rank(shape, work, Sharing("ddp"), ranks, device)
    for name in NAMES[1:]:
        divided = memory_per_rank(shape, work, Sharing(name), ranks, device)
        assert divided.weights <= replicated.weights
        assert divided.adapters <= replicated.adapters
        assert divided.gradients <= replicated.gradients
        if ranks > 1:  # DeepSpeed's third copy outweighs the saving on a single rank
            assert divided.optimizer <= replicated.optimizer


@settings(deadline=None)
@given(shapes, works, sharings, st.integers(1, 256))
def test_more_ranks_never_take_more(shape: ModelShape, work: Workload, sharing: Sharing, ranks: int) -> None:
    state = [memory_per_rank(shape, work, sharing, count) for count in (2 * ranks, 4 * ranks)]
    assert state[1].total <= state[0].total


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
@pytest.mark.parametrize("size", ["4b", "12b", "27b"])
def test_dividing_a_large_base_by_eight_pays(size: str, name: SharingName) -> None:
    whole = memory_per_rank(SIZES[size], Workload(), Sharing("ddp"), 8).total
    assert memory_per_rank(SIZES[size], Workload(), Sharing(name), 8).total < 0.75 * whole


@settings(deadline=None)
@given(shapes, works, devices)
def test_checkpointing_keeps_less(shape: ModelShape, work: Workload, device: DeviceKind) -> None:
    modes: tuple[Checkpointing, ...] = CHECKPOINTING
    off, selective, full = (activation_bytes(shape, work, Sharing("ddp", mode), device) for mode in modes)
    assert full < selective < off


@pytest.mark.parametrize("size", SIZES)
def test_fewer_bits_take_less(size: str) -> None:
    bits = [weight_bytes(SIZES[size], Workload(quantization=q)) for q in ("none", "int8", "int4")]
    assert bits == sorted(bits, reverse=True)


def test_a_tower_takes_memory_where_it_runs_in_each_step() -> None:
    """417 M weights in bf16 and the states of 4,096 patches; the projector is small, and text has neither."""
    anew, kept, text = (sight_bytes(SIZES["4b"], Workload(pictures=p)) for p in ("anew", "kept", "none"))
    assert text == sight_bytes(SIZES["1b"], Workload(pictures="anew")) == 0
    assert kept == 2 * (1152 * 2560 + 1152)
    assert (anew - kept) / 2**30 == pytest.approx(0.78 + 0.1, abs=0.02)
    assert sight_bytes(SIZES["4b"], Workload(pictures="anew", quantization="int4")) == anew


@pytest.mark.parametrize(("size", "gib"), [("270m", 0.5), ("1b", 1.9), ("4b", 7.2), ("12b", 21.9), ("27b", 50.3)])
def test_base_weights_in_bf16(size: str, gib: float) -> None:
    assert weight_bytes(SIZES[size], Workload()) / 2**30 == pytest.approx(gib, abs=0.05)


@pytest.mark.parametrize(
    ("size", "off", "full"),
    [("270m", 730, 78), ("1b", 2307, 174), ("4b", 5472, 390), ("12b", 12197, 703), ("27b", 20609, 1109)],
)
def test_activations_beside_peaks_once_traced_with_fake_tensors(size: str, off: int, full: int) -> None:
    """KiB a token that another program traced for packed attention and a chunked loss, transients included.

    It cast the adapters of a layer when the layer ran; here those of all layers are cast for a pass at once.
    """
    work = Workload(length=2048)
    kept = {m: memory_per_rank(SIZES[size], work, Sharing("ddp", m), 1) for m in ("off", "full")}
    copies = {"off": 0, "full": SIZES[size].layers * adapter_copies_of_layer(SIZES[size], work)}
    per_token = {m: (p.activations + p.transient - copies[m]) / work.tokens / 1024 for m, p in kept.items()}
    assert per_token["off"] == pytest.approx(off, rel=0.04)
    assert per_token["full"] == pytest.approx(full, rel=0.08)


@pytest.mark.parametrize(("size", "off", "selective"), [("1b", 60948, 37892)])
def test_compiled_layers_keep_what_the_allocator_showed(size: str, off: int, selective: int) -> None:
    """Bytes a token and layer between one layer's forward and the next one's, by torch 2.14's allocator on CUDA."""
    work = Workload(length=2048, compiled=("ddp",))
    assert kept_by_layer_compiled(SIZES[size], work) == off
    assert kept_by_layer_selective(SIZES[size], work, "cuda") == pytest.approx(selective, rel=0.06)
    totals = {
        (bool(ways), mode): memory_per_rank(SIZES[size], replace(work, compiled=ways), Sharing("ddp", mode), 1).total
        for ways in ((), ("ddp",))
        for mode in CHECKPOINTING
    }
    assert totals[True, "full"] < totals[True, "selective"] < totals[True, "off"] < totals[False, "off"]
    ways: list[tuple[SharingName, ...]] = [(), ("ddp",), ("ddp", "fsdp2")]
    divided = [memory_per_rank(SIZES[size], replace(work, compiled=way), Sharing("fsdp2"), 2).total for way in ways]
    assert divided[0] == divided[1] > divided[2]
