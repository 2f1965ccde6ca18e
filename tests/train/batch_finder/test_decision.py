"""Whether a run looks for its micro-batch by probes, and what it takes without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from gemfleet.train.batch_finder.decision import Decision, decide
from gemfleet.train.batch_finder.local import settle_micro
from gemfleet.train.batch_finder.probes.probe import worst_rows
from gemfleet.train.batch_finder.variant_search import ProbeError
from gemfleet.train.batch_finder.worth import EXPECTED_GAIN, duration, sheet_of, worth_of_search
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.interfaces import Ints, PackedRows, Pixels, Shares, StepRows, no_pictures
from gemfleet.train.planning import SIZES, Sharing, Workload
from gemfleet.train.planning.auto_strategy import RankDevices, Settled, settle_strategy

GIB = 2**30
CPU = RankDevices(2, 16 * GIB, "cpu", "fp32")
H200 = RankDevices(2, 140 * GIB, "cuda", "bf16", "NVIDIA H200")


class Source:
    """Steps of so many full rows on every rank."""

    eval_sets, pictures = (), no_pictures()

    def __init__(self, rows: int = 8, steps: int = 100, length: int = 256) -> None:
        self._rows = worst_rows(rows, length, 100)
        self._tokens, self.steps_per_epoch = 2 * rows * length, steps

    def step(self, epoch: int, step_in_epoch: int, rank: int, shares: Shares | None = None) -> StepRows:
        return StepRows(self._rows, 16, self._tokens, self._tokens)

    def eval_rows(self, rank: int, name: str) -> PackedRows:
        return self._rows

    def pixels(self, ids: Ints) -> Pixels:
        raise KeyError("no pictures")


def plan(devices: RankDevices, **train: Any) -> tuple[TrainConfig, Settled]:
    values = {"model": "x", "data": {"train": "y", "max_length": 256}, "batch": {"global": 16}, **train}
    settled = settle_strategy(TrainConfig.model_validate(values), SIZES["1b"], devices)
    return settled.config, settled


def decided(devices: RankDevices, steps: int = 100, done: int = 0, **train: Any) -> Decision:
    return decide(*plan(devices, **train), Source(steps=steps), 2, done)


def test_a_cpu_is_settled_by_the_plan() -> None:
    decision = decided(CPU)
    assert (decision.probes, decision.rows) == (False, 4)
    assert decision.sentence().startswith("micro-batch 4 by the plan: a pass of 1,024 tokens")
    assert "probes" not in decision.sentence()
    tight = decided(replace(CPU, memory_bytes=10 * GIB))  # compiled layers, which are a GPU's, would have room for 4
    assert tight.sentence().startswith("micro-batch 2 by the plan: 4 rows would take 9.")


def test_a_short_run_on_gpus_is_settled_by_the_plan_and_says_so() -> None:
    decision = decided(H200)
    assert (decision.probes, decision.rows) == (False, 8)
    assert "a pass holds all rows that a rank has in a step; of the" in decision.sentence()
    assert "less than the" in decision.sentence()


def test_a_long_run_on_gpus_is_searched_for_no_longer_than_it_can_earn_back() -> None:
    decision = decided(H200, steps=100_000)
    assert decision.probes
    assert 30 < decision.budget_s < 10_000
    assert "probes may save" in decision.reason
    assert not decided(H200, steps=100_000, done=99_900).probes  # little is left of a run that goes on
    assert not decided(H200, steps=100_000, max_steps=100).probes


def test_probes_that_are_asked_for_are_always_made() -> None:
    for devices in (CPU, H200):
        decision = decided(devices, batch={"global": 16, "micro": "probe"})
        assert (decision.probes, decision.budget_s) == (True, float("inf"))


def test_devices_that_no_plan_knows_are_probed() -> None:
    config, _ = plan(H200)
    assert decide(config, None, Source(), 2).probes
    unknown = decide(config, None, Source(), 2, on_gpu=False)
    assert (unknown.probes, unknown.rows) == (False, 1)
    assert unknown.sentence().startswith("micro-batch 1; what the devices hold is not known")


def test_what_ran_out_of_memory_before_is_not_tried_again() -> None:
    decision = decided(CPU).at_most(2)
    assert decision.rows == 2
    assert decision.sentence() == "micro-batch 2 by the plan: with more, memory ran out before"
    assert decided(CPU).at_most(None) == decided(CPU).at_most(8) == decided(CPU)


def test_the_estimate_is_of_this_run_on_this_gpu() -> None:
    def worth(gpu: str, steps: int = 1000, tokens: float = 4096.0) -> float:
        return worth_of_search(SIZES["1b"], Workload(micro=4), Sharing("ddp"), 2, gpu, steps, tokens).run_s

    assert worth("NVIDIA L4") > 3 * worth("NVIDIA H200")
    assert worth("NVIDIA H200", steps=2000) == pytest.approx(2 * worth("NVIDIA H200"))
    assert worth("NVIDIA H200", tokens=32 * 1024) > 4 * worth("NVIDIA H200")
    assert sheet_of("something new").name == "a100-80"
    one = worth_of_search(SIZES["27b"], Workload(), Sharing("ddp"), 2, "", 1, 4096.0)
    assert one.search_s > 50  # the base alone has 50 GB to load
    assert one.gain_s == EXPECTED_GAIN * one.run_s


def test_durations() -> None:
    assert [duration(s) for s in (0.001, 0.44, 41.0, 700.0, 12_600.0)] == ["0.1 s", "0.4 s", "41 s", "12 min", "3.5 h"]


def local(
    monkeypatch: pytest.MonkeyPatch, devices: RankDevices, world: int = 1, **train: Any
) -> tuple[TrainConfig, int]:
    """What `python -m train` settles on, and how often it searched; each search fails for no reason of memory."""
    searches: list[int] = []

    def fails(*_: Any) -> TrainConfig:
        searches.append(1)
        raise ProbeError("the rendezvous broke")

    monkeypatch.setattr("gemfleet.train.batch_finder.local.find_here", fails)
    config, settled = plan(devices, **train)
    return settle_micro(config, settled, None, Source(steps=100_000), 0, world, 0), len(searches)  # type: ignore[arg-type]


def test_probes_that_fail_unasked_leave_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    found, searches = local(monkeypatch, H200)
    assert (found.batch.micro, searches) == (8, 1)
    with pytest.raises(ProbeError):
        local(monkeypatch, H200, batch={"global": 16, "micro": "probe"})


def test_nothing_is_searched_on_a_cpu_or_over_several_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    found, searches = local(monkeypatch, CPU, world=2)  # each machine of torchrun has one of the ranks
    assert (found.batch.micro, searches) == (4, 0)
    with pytest.raises(UserError, match=r"train\.batch\.micro is 'probe', which torchrun can do on one machine only"):
        local(monkeypatch, CPU, world=2, batch={"global": 16, "micro": "probe"})


def test_a_number_and_scoring_alone_need_no_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local(monkeypatch, H200, batch={"global": 16, "micro": 3})[0].batch.micro == 3
    assert local(monkeypatch, H200, max_steps=0)[0].batch.micro == 1
