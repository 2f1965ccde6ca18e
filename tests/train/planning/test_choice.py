"""Which strategy is chosen, and what its sentence says."""

from __future__ import annotations

import pytest
from gemfleet.train.planning import GPUS, SIZES, Fleet, ModelShape, Sharing, Workload, choose_strategy, memory_per_rank
from gemfleet.train.planning.choice import MARGIN, all_sharings, candidates, choose_among
from gemfleet.train.planning.options import Quantization
from gemfleet.train.planning.remedies import joint_remedies, remedies
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = 2**30


@settings(deadline=None)
@given(
    st.sampled_from(list(SIZES.values())),
    st.integers(1, 512),
    st.integers(1 * GIB, 200 * GIB),
    st.integers(64, 8192),
    st.sampled_from(["none", "int8", "int4"]),
)
def test_a_choice_fits_with_its_margin_or_says_why_not(
    shape: ModelShape, ranks: int, memory: int, length: int, quantization: Quantization
) -> None:
    work, fleet = Workload(length=length, quantization=quantization), Fleet(ranks)
    choice = choose_strategy(shape, work, fleet, memory)
    assert choice.fits == (choice.memory.total <= int(memory * (1 - MARGIN)))
    assert choice.sharing in candidates(shape, work, fleet)
    assert choice.fits or choice.reason.startswith("nothing fits")
    if ranks == 1:
        assert choice.sharing.name == "ddp"


@settings(deadline=None)
@given(st.sampled_from(list(SIZES.values())), st.integers(1, 512), st.integers(1 * GIB, 100 * GIB))
def test_more_memory_never_undoes_a_fit(shape: ModelShape, ranks: int, memory: int) -> None:
    fleet = Fleet(ranks)
    if choose_strategy(shape, Workload(), fleet, memory).fits:
        assert choose_strategy(shape, Workload(), fleet, 2 * memory).fits


@pytest.mark.parametrize("size", SIZES)
def test_ddp_wherever_the_base_fits(size: str) -> None:
    choice = choose_strategy(SIZES[size], Workload(), Fleet(8), GPUS["h200"].memory_bytes)
    assert (choice.sharing.name, choice.sharing.checkpointing, choice.fits) == ("ddp", "off", True)
    assert "only adapter gradients move" in choice.reason


def test_a_base_too_large_is_divided() -> None:
    choice = choose_strategy(SIZES["27b"], Workload(), Fleet(8), GPUS["a100-40"].memory_bytes)
    assert choice.fits
    assert choice.sharing.name == "fsdp2"
    assert "whole base on every rank" in choice.reason


def test_the_largest_base_fits_two_small_cards_in_four_bits() -> None:
    work, fleet, memory = Workload(length=4096, quantization="int4"), Fleet(2), GPUS["rtx4090"].memory_bytes
    choice = choose_strategy(SIZES["27b"], work, fleet, memory)
    assert (choice.fits, choice.sharing.name) == (True, "fsdp2")
    assert {sharing.name for sharing in all_sharings(work, fleet, "off")} == {"ddp", "fsdp2"}
    gathered = [memory_per_rank(SIZES["27b"], w, choice.sharing, 2).gathered for w in (Workload(), work)]
    assert gathered[0] - gathered[1] > GIB


def test_recomputation_is_tried_before_the_base_is_divided() -> None:
    choice = choose_strategy(SIZES["4b"], Workload(length=4096), Fleet(8), GPUS["rtx4090"].memory_bytes)
    assert (choice.sharing.name, choice.sharing.checkpointing) == ("ddp", "selective")
    assert "without, it would take" in choice.reason


def test_the_loss_goes_in_the_largest_chunks_that_fit_before_anything_is_recomputed() -> None:
    def enough(rows: int) -> int:
        total = memory_per_rank(SIZES["4b"], Workload(chunk_rows=rows), Sharing("ddp"), 1).total
        return int(total / (1 - MARGIN)) + 2

    for rows in (2048, 1024, 512, 256):
        choice = choose_strategy(SIZES["4b"], Workload(), Fleet(1), enough(rows))
        assert (choice.chunk_rows, str(choice.sharing)) == (rows, "ddp")
        assert (f"with the loss in chunks of {rows} rows" in choice.reason) == (rows < 2048)
    assert (
        choose_strategy(SIZES["4b"], Workload(), Fleet(1), enough(256) - GIB // 8).sharing.checkpointing == "selective"
    )


def test_rows_that_a_person_chose_for_the_loss_stay_and_leaving_them_open_is_a_remedy() -> None:
    work = Workload(chunk_rows=4096)
    assert choose_strategy(SIZES["4b"], work, Fleet(1), 80 * GIB).chunk_rows == 4096
    refused = choose_strategy(SIZES["4b"], work, Fleet(1), 16 * GIB)
    assert "; leave train.loss_chunk_rows at auto (" in refused.reason


def test_asked_for_checkpointing_is_kept() -> None:
    choice = choose_strategy(SIZES["1b"], Workload(), Fleet(2), GPUS["h100"].memory_bytes, checkpointing="full")
    assert choice.sharing.checkpointing == "full"


def test_where_nothing_fits_the_sentence_names_remedies_in_the_order_of_cost_with_what_each_takes() -> None:
    work, memory = Workload(micro=2), GPUS["a10"].memory_bytes
    choice = choose_strategy(SIZES["12b"], work, Fleet(1), memory)
    assert not choice.fits
    eight_bits, four_bits, cards = choice.reason.partition("; ")[2].split("; or ")
    assert eight_bits.startswith("set train.quantization to int8 (")
    remedied = choose_strategy(SIZES["12b"], Workload(quantization="int4"), Fleet(1), memory)
    assert remedied.fits
    figure = f"({remedied.memory.total / GIB:.1f} GiB by {remedied.sharing})"
    assert four_bits == f"set train.quantization to int4 {figure}"
    assert cards.startswith("use 2 GPUs (")


def test_two_changes_at_once_are_named_where_no_single_one_is_enough() -> None:
    two_changes, memory = "set train.quantization to int4 and set train.data.max_length to 8192 (", 24 * GIB
    assert two_changes in choose_strategy(SIZES["12b"], Workload(length=32768), Fleet(1), memory).reason
    assert two_changes not in choose_strategy(SIZES["12b"], Workload(length=1024), Fleet(1), memory).reason


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(list(SIZES.values())), st.integers(1, 16), st.integers(8, 48), st.integers(256, 32768))
def test_every_remedy_that_is_named_helps(shape: ModelShape, ranks: int, gigabytes: int, length: int) -> None:
    work, fleet, memory = Workload(length=length, micro=4), Fleet(ranks), gigabytes * GIB
    choice = choose_strategy(shape, work, fleet, memory)
    if choice.fits:
        return
    changes = [remedy for group in [*remedies(work, fleet), *joint_remedies(work, fleet)] for remedy in group]
    told = choice.reason.partition("; ")[2].split("; or ")
    named = [remedy for remedy in changes if any(words.startswith(f"{remedy.words} (") for words in told)]
    assert named or choice.reason.endswith("use a device with more memory, or a smaller model")
    assert all(
        choose_strategy(shape, remedy.work, remedy.fleet, memory, context=remedy.context or 1).fits for remedy in named
    )


def test_a_strategy_that_the_person_named_is_a_remedy_too() -> None:
    def only_ddp(work: Workload, fleet: Fleet) -> list[Sharing]:
        return [Sharing("ddp")]

    choice = choose_among(only_ddp, SIZES["27b"], Workload(), Fleet(8), GPUS["a100-40"].memory_bytes)
    assert "; leave train.strategy and train.activation_checkpointing at auto (" in choice.reason


def test_on_a_cpu_too() -> None:
    assert choose_strategy(SIZES["270m"], Workload(), Fleet(2), 8 * GIB, "cpu").fits
