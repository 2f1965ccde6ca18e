"""Every way of sharing the work trains the same run, on any number of ranks, and goes on from another's checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gemfleet.train.config.sections.recipe import OptimConfig
from gemfleet.train.errors import UserError
from gemfleet.train.planning.memory import CPU_PROCESS
from gemfleet.train.strategies.ddp import DdpStrategy
from gemfleet.train.strategies.fsdp2 import refuse_old_torch
from support.quantised_base import gathered_base, stored_base
from support.rank_pool import RankPool
from support.reference_step import trainable
from support.strategy_cases import (
    DIVIDE_ALL,
    STRATEGIES,
    Outcome,
    base_bytes,
    chunk_of_logits,
    devices_of_unequal_ranks,
    reduce_bucket,
    train_case,
)
from support.tiny_model import save_tiny_gemma3

LOSS, ADAPTER = 1e-4, 1e-3
HALFWAY = 10
OPTIONS: dict[str, dict[str, Any]] = {
    "fsdp2 kept gathered": {"strategy": "fsdp2", "fsdp2": {"reshard_after_forward": False}},
    "fsdp2 offloaded": {"strategy": "fsdp2", "fsdp2": {"cpu_offload": True}},
    "zero-2 offloaded": {"strategy": "deepspeed", "deepspeed": {"stage": 2, "offload_optimizer": True}},
    "zero-3 offloaded": {
        "strategy": "deepspeed",
        "deepspeed": {"stage": 3, "offload_optimizer": True, "offload_params": True, "config": DIVIDE_ALL},
    },
}
# Ranks that share the tokens of each pass: both of two ranks, and pairs or all of four.
IN_CONTEXT = {
    f"{name} in context {size}": {**changes, "context_parallel": size}
    for size in (2, 4)
    for name, changes in STRATEGIES.items()
}
# A circle of runs with their ranks: each goes on from what the one before it saved. One process, two ranks that share
# passes, and every strategy on four ranks, in one group or in two.
ANY_CONTEXT = [
    ("ddp", 1),
    ("zero-1 in context 2", 4),
    ("fsdp2 in context 4", 4),
    ("ddp in context 4", 4),
    ("zero-3 in context 2", 4),
    ("ddp in context 2", 2),
    ("zero-2 in context 4", 4),
    ("fsdp2 in context 2", 4),
]
QUANTISED: dict[str, dict[str, Any]] = {
    f"{strategy} {bits}": {"strategy": strategy, "quantization": bits}
    for strategy in ("ddp", "fsdp2")
    for bits in ("int4", "int8")
}
QUANTISED["fsdp2 int4 kept gathered"] = {**QUANTISED["fsdp2 int4"], "fsdp2": {"reshard_after_forward": False}}
QUANTISED["fsdp2 int4 offloaded"] = {**QUANTISED["fsdp2 int4"], "fsdp2": {"cpu_offload": True}}
ALL = STRATEGIES | OPTIONS | IN_CONTEXT | QUANTISED


@dataclass
class Laboratory:
    """Rank groups by size, started when first needed, and the outcomes of what they ran."""

    folder: Path
    stack: ExitStack
    pools: dict[int, RankPool] = field(default_factory=dict)
    outcomes: dict[tuple[str, int, str], Outcome] = field(default_factory=dict)
    resumptions: dict[tuple[str, int, str, int], Outcome] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    def pool(self, ranks: int) -> RankPool:
        if ranks not in self.pools:
            self.pools[ranks] = self.stack.enter_context(RankPool(ranks))
        return self.pools[ranks]

    def run_folder(self, name: str, ranks: int, recompute: str) -> Path:
        return self.folder / f"{name}-{ranks}-{recompute}".replace(" ", "-")

    def whole(self, name: str, ranks: int, recompute: str = "off") -> Outcome:
        """The run of 20 steps, done once."""
        key = (name, ranks, recompute)
        if key not in self.outcomes:
            changes = {**ALL[name], "activation_checkpointing": recompute}
            folder = str(self.run_folder(*key))
            self.outcomes[key] = self.pool(ranks).run(train_case, self.model, folder, changes)[0]
        return self.outcomes[key]

    def resumed(self, writer: str, writer_ranks: int, name: str, ranks: int) -> Outcome:
        """The second half of the run, from the checkpoint that `writer` left halfway; done once."""
        key = (writer, writer_ranks, name, ranks)
        if key not in self.resumptions:
            self.whole(writer, writer_ranks)
            folder = self.folder / f"{writer}-{writer_ranks}-to-{name}-{ranks}"
            checkpoint = f"checkpoint-{HALFWAY}"
            shutil.copytree(self.run_folder(writer, writer_ranks, "off") / checkpoint, folder / checkpoint)
            self.resumptions[key] = self.pool(ranks).run(train_case, self.model, str(folder), ALL[name])[0]
        return self.resumptions[key]


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    folder = tmp_path_factory.mktemp("strategies")
    save_tiny_gemma3(folder / "model")
    with ExitStack() as stack:
        yield Laboratory(folder, stack)


def differences(outcome: Outcome, expected: Outcome) -> tuple[float, float]:
    """The largest difference of a step's or an evaluation's loss, and of an adapter's entry."""
    assert outcome.losses.keys() == expected.losses.keys()
    assert outcome.adapter.keys() == expected.adapter.keys()
    assert outcome.optimizer.keys() == expected.optimizer.keys()
    assert len(outcome.evaluations) == len(expected.evaluations) > 1
    losses = [abs(outcome.losses[step] - loss) for step, loss in expected.losses.items()]
    losses += [abs(a - b) for a, b in zip(outcome.evaluations, expected.evaluations, strict=True)]
    entries = [float(np.abs(outcome.adapter[name] - entry).max()) for name, entry in expected.adapter.items()]
    return max(losses), max(entries)


def same_run(outcome: Outcome, expected: Outcome) -> bool:
    loss, adapter = differences(outcome, expected)
    return loss < LOSS and adapter < ADAPTER


def test_two_ranks_train_the_same_under_a_sample(laboratory: Laboratory) -> None:
    expected = laboratory.whole("ddp", 2)
    assert expected.losses[20] < expected.losses[1] - 0.3
    assert same_run(laboratory.whole("fsdp2", 2), expected)
    assert same_run(laboratory.whole("zero-2", 2), expected)
    in_context = laboratory.whole("ddp in context 2", 2)
    assert same_run(in_context, expected)
    np.testing.assert_allclose(in_context.counted, expected.counted, rtol=1e-12)  # what two ranks share counts once


def test_a_quantised_base_is_divided(laboratory: Laboratory) -> None:
    expected = laboratory.whole("ddp int4", 1)
    assert expected.losses[20] < expected.losses[1] - 0.3
    assert expected.losses[1] != pytest.approx(laboratory.whole("ddp", 2).losses[1], abs=LOSS)
    assert same_run(laboratory.whole("fsdp2 int4", 2), expected)


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["int4", "int8"])
@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.long)])
def test_a_divided_quantised_base_trains_as_one_process_does(laboratory: Laboratory, ranks: int, bits: str) -> None:
    expected = laboratory.whole(f"ddp {bits}", 1)
    for recompute in ("off", "full", "selective"):
        loss, adapter = differences(laboratory.whole(f"fsdp2 {bits}", ranks, recompute), expected)
        print(f"\n{bits} on {ranks} ranks, checkpointing {recompute}: loss off by {loss:.1e}, adapter {adapter:.1e}")
        assert (loss < LOSS, adapter < ADAPTER) == (True, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp2 int4 kept gathered", "fsdp2 int4 offloaded"])
def test_options_of_a_divided_quantised_base_change_no_number(laboratory: Laboratory, name: str) -> None:
    assert same_run(laboratory.whole(name, 2), laboratory.whole("ddp int4", 1))


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["int4", "int8"])
@pytest.mark.parametrize(
    ("writer", "reader", "ranks"),
    [("ddp", "fsdp2", 2), ("fsdp2", "ddp", 1), pytest.param("fsdp2", "fsdp2", 4, marks=pytest.mark.long)],
)
def test_a_quantised_run_resumes_under_the_other_strategy(
    laboratory: Laboratory, writer: str, reader: str, ranks: int, bits: str
) -> None:
    resumed = laboratory.resumed(f"{writer} {bits}", 2, f"{reader} {bits}", ranks)
    assert same_run(resumed, laboratory.whole(f"ddp {bits}", 1))


def test_an_older_torch_cannot_divide_a_quantised_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.12.1+cpu")
    with pytest.raises(UserError, match=r"int8 with train\.strategy fsdp2, which needs torch 2\.13 .*has 2\.12\.1"):
        refuse_old_torch("int8")
    refuse_old_torch("none")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_ranks_quantise_their_shares_to_the_bits_of_one_process(laboratory: Laboratory, dtype: str, bits: str) -> None:
    """Codes, scales, and the scales of scales. A border between ranks lies within a weight."""
    expected = stored_base(laboratory.model, bits, dtype)
    for found in laboratory.pool(2).run(gathered_base, laboratory.model, bits, dtype):
        assert found.keys() == expected.keys()
        assert [name for name, values in expected.items() if not np.array_equal(found[name], values)] == []


@pytest.mark.parametrize(
    ("writer", "reader"), [("ddp", "fsdp2"), ("fsdp2", "zero-2"), ("zero-2", "ddp"), ("fsdp2", "ddp in context 2")]
)
def test_a_sample_resumes_under_another(laboratory: Laboratory, writer: str, reader: str) -> None:
    assert same_run(laboratory.resumed(writer, 2, reader, 2), laboratory.whole("ddp", 2))


def test_ranks_with_unequal_memory_settle_on_the_least(laboratory: Laboratory) -> None:
    least, same = laboratory.pool(2).run(devices_of_unequal_ranks)
    assert least == same
    assert (least.ranks, least.memory_bytes) == (2, 700 * 2**20 - CPU_PROCESS)


def test_a_restored_state_lies_where_its_parameters_lie() -> None:
    """AdamW's count of steps too: the fused kernel refuses one on another device. All machines have `meta`."""
    model = trainable()
    model.peft_model.to("meta")
    strategy = DdpStrategy(OptimConfig())
    strategy.setup(model)
    shapes = {name: parameter.shape for name, parameter in model.adapter_parameters().items()}
    adapter = {name: torch.zeros(shape) for name, shape in shapes.items()}
    optimizer = {f"{name}.step": torch.tensor(3.0) for name in shapes}
    optimizer |= {f"{name}.{field}": adapter[name] for name in shapes for field in ("exp_avg", "exp_avg_sq")}
    strategy.restore(adapter, optimizer)
    states = list(strategy._optimizer.state.values())
    assert len(states) == len(shapes)
    assert all(set(state) == {"step", "exp_avg", "exp_avg_sq"} for state in states)
    assert {tensor.device.type for state in states for tensor in state.values()} == {"meta"}


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero-3", "fsdp2 int4"])
def test_the_loss_goes_in_the_chunks_that_were_chosen(laboratory: Laboratory, name: str) -> None:
    """Also where the head's weight is gathered: plan and batch finder choose the chunks for that too."""
    changes = {**ALL[name], "loss_chunk_rows": 7}
    assert laboratory.pool(2).run(chunk_of_logits, laboratory.model, changes) == [7, 7]


def test_deepspeed_reserves_no_more_for_gradients_than_adapters_have(laboratory: Laboratory) -> None:
    for name in ("zero-2", "zero-3"):
        for bucket, trained in laboratory.pool(2).run(reduce_bucket, laboratory.model, STRATEGIES[name]):
            assert bucket == trained > 0


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.long)])
def test_every_strategy_trains_the_same_run(laboratory: Laboratory, ranks: int) -> None:
    expected = laboratory.whole("ddp", 1)
    print(f"\n{'strategy':10} {'ranks':>5} {'checkpointing':>14} {'last loss':>10} {'loss off by':>12} {'adapter':>9}")
    failed = []
    for name in STRATEGIES:
        # Under ZeRO-3 the hooks of a layer gather parameters, and gather others when it runs again in backward.
        for recompute in ("off", "full", "selective") if name == "zero-3" else ("off", "full"):
            outcome = laboratory.whole(name, ranks, recompute)
            loss, adapter = differences(outcome, expected)
            print(f"{name:10} {ranks:5} {recompute:>14} {outcome.losses[20]:10.6f} {loss:12.1e} {adapter:9.1e}")
            if not same_run(outcome, expected):
                failed.append(f"{name} with checkpointing {recompute}")
    assert not failed


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_options_change_no_number(laboratory: Laboratory, name: str) -> None:
    assert same_run(laboratory.whole(name, 2), laboratory.whole("ddp", 2))


@pytest.mark.long
@pytest.mark.parametrize(
    ("ranks", "context"),
    [(2, 2), (4, 2), (4, 4)],
)
def test_ranks_that_share_passes_train_the_same_run(laboratory: Laboratory, ranks: int, context: int) -> None:
    expected = laboratory.whole("ddp", 1)
    failed = []
    for name in [f"{strategy} in context {context}" for strategy in STRATEGIES]:
        everything = ranks == 2 or name.startswith("ddp")
        for recompute in ("off", "full", "selective") if everything else ("off",):
            loss, adapter = differences(laboratory.whole(name, ranks, recompute), expected)
            print(f"{name:20} on {ranks}, checkpointing {recompute:9} loss off by {loss:.1e}, adapter {adapter:.1e}")
            if loss > LOSS / 10 or adapter > ADAPTER / 10:
                failed.append(f"{name} with checkpointing {recompute}")
    assert not failed


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("writer", "reader"), zip(ANY_CONTEXT, ANY_CONTEXT[1:] + ANY_CONTEXT[:1], strict=True))
def test_a_checkpoint_resumes_in_any_context(
    laboratory: Laboratory, writer: tuple[str, int], reader: tuple[str, int]
) -> None:
    """And under any strategy: the second half is that of a run that one process makes from its beginning."""
    loss, adapter = differences(laboratory.resumed(*writer, *reader), laboratory.whole("ddp", 1))
    print(f"\n{writer} -> {reader}: loss off by {loss:.1e}, adapter {adapter:.1e}")
    assert (loss < LOSS / 10, adapter < ADAPTER / 10) == (True, True)


@pytest.mark.slow
@pytest.mark.parametrize(("writer", "reader"), [("fsdp2", "zero-3"), ("zero-1", "ddp"), ("fsdp2 in context 2", "ddp")])
def test_a_sample_resumes_on_one_rank(laboratory: Laboratory, writer: str, reader: str) -> None:
    assert same_run(laboratory.resumed(writer, 2, reader, 1), laboratory.whole("ddp", 2))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("writer", STRATEGIES)
def test_a_checkpoint_resumes_under_every_strategy_on_other_ranks(
    laboratory: Laboratory, writer: str, ranks: int
) -> None:
    expected = laboratory.whole("ddp", 2)
    failed = {}
    for reader in STRATEGIES:
        outcome = laboratory.resumed(writer, 2, reader, ranks)
        loss, adapter = differences(outcome, expected)
        print(f"\n{writer} on 2 ranks -> {reader} on {ranks}: loss off by {loss:.1e}, adapter {adapter:.1e}", end="")
        if not same_run(outcome, expected):
            failed[reader] = (loss, adapter)
    assert not failed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp2", "zero-3"])
def test_a_rank_holds_its_share_of_the_base(laboratory: Laboratory, name: str) -> None:
    for held, whole in laboratory.pool(2).run(base_bytes, laboratory.model, STRATEGIES[name]):
        assert held <= 0.51 * whole


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_early_stopping_ends_all_ranks_at_the_same_step(laboratory: Laboratory, ranks: int) -> None:
    """No loss falls by ten, so the second evaluation, after the second epoch of three steps, is the last."""
    changes = {"early_stopping": {"patience": 1, "min_delta": 10.0}}
    folder = str(laboratory.run_folder("early", ranks, "off"))
    outcomes = laboratory.pool(ranks).run(train_case, laboratory.model, folder, changes)
    assert [max(outcome.losses) for outcome in outcomes] == [6] * ranks


@pytest.mark.parametrize(("writer", "name"), [("ddp", "ddp"), ("zero-3", "fsdp2"), ("ddp", "zero-3")])
def test_an_adapter_goes_on_where_the_run_that_made_it_ended(laboratory: Laboratory, writer: str, name: str) -> None:
    """Other order, optimizer and schedule; the loss before its first step is that after the other run's last."""
    ended = laboratory.whole(writer, 2)
    adapter = laboratory.run_folder(writer, 2, "off") / "checkpoint-20"
    changes = {**STRATEGIES[name], "adapter": str(adapter), "seed": 7, "max_steps": 1}
    folder = str(laboratory.run_folder(f"on-{name}", 2, "off"))
    went_on = laboratory.pool(2).run(train_case, laboratory.model, folder, changes)[0]
    assert went_on.evaluations[0] == pytest.approx(ended.evaluations[-1], abs=1e-5)
    assert ended.evaluations[0] != pytest.approx(ended.evaluations[-1], abs=1e-3)
