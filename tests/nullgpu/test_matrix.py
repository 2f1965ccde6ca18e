"""Every way to share the work, in every precision, quantised and not, recomputing or not: trained, evaluated, saved and
resumed on a pretended GPU."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from support.nullgpu.cases import MORE_STEPS, STEPS, Report, train_and_resume
from support.nullgpu.pools import Pools

pytestmark = [pytest.mark.nullgpu, pytest.mark.slow]

Case = dict[str, Any]
# Tiny tensors would stay gathered under ZeRO-3, which is what these tests are to see divided.
DIVIDE_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
STRATEGIES: dict[str, Case] = {
    "ddp": {},
    "fsdp2": {"strategy": "fsdp2"},
    "fsdp2 kept gathered": {"strategy": "fsdp2", "fsdp2": {"reshard_after_forward": False}},
    "fsdp2 offloaded": {"strategy": "fsdp2", "fsdp2": {"cpu_offload": True}},
    "zero-1": {"strategy": "deepspeed", "deepspeed": {"stage": 1}},
    "zero-2": {"strategy": "deepspeed", "deepspeed": {"stage": 2}},
    "zero-2 offloaded": {"strategy": "deepspeed", "deepspeed": {"stage": 2, "offload_optimizer": True}},
    "zero-3": {"strategy": "deepspeed", "deepspeed": {"stage": 3, "config": DIVIDE_ALL}},
    "zero-3 offloaded": {
        "strategy": "deepspeed",
        "deepspeed": {"stage": 3, "offload_optimizer": True, "offload_params": True, "config": DIVIDE_ALL},
    },
}
WORLDS = (1, 2)
PRECISIONS = ("bf16", "fp32")
RECOMPUTATION = ("off", "selective", "full")


def named(names: tuple[str, ...], changes: Case) -> Any:
    return pytest.param(changes, id=" ".join(names))


DIVIDED = [
    named((name, precision, recompute), {**case, "precision": precision, "activation_checkpointing": recompute})
    for (name, case), precision, recompute in product(STRATEGIES.items(), PRECISIONS, RECOMPUTATION)
]
DIVIDED += [named(("fsdp2", bits), {"strategy": "fsdp2", "quantization": bits}) for bits in ("int4", "int8")]
QUANTISED = [
    named(
        (bits, precision, recompute),
        {"quantization": bits, "precision": precision, "activation_checkpointing": recompute},
    )
    for bits, precision, recompute in product(("int4", "int8"), PRECISIONS, RECOMPUTATION)
]
OTHERS = [
    named(("dropout",), {"lora": {"r": 8, "dropout": 0.1}, "activation_checkpointing": "selective"}),
    named(("limit of memory",), {"batch": {"global": 8, "micro": 2, "device_memory_limit": "2GiB"}}),
    named(("flash asked for",), {"attention": "flash"}),
    named(("fp16 asked for",), {"precision": "fp16"}),
]


def check(report: Report) -> None:
    assert report.steps == STEPS + MORE_STEPS
    assert len(report.counted) == STEPS + MORE_STEPS, "the resumed run began anew"
    assert report.refused_launches == 0
    assert report.retries == 0


@pytest.mark.parametrize("changes", DIVIDED)
@pytest.mark.parametrize("ranks", WORLDS)
def test_it_trains_and_resumes(pools: Pools, small_model: str, tmp_path: Path, ranks: int, changes: Case) -> None:
    check(pools.alone(ranks).run(train_and_resume, small_model, str(tmp_path), changes)[0])


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_quarter_of_four_trains_and_resumes(pools: Pools, small_model: str, tmp_path: Path, name: str) -> None:
    changes = {**STRATEGIES[name], "activation_checkpointing": "selective"}
    check(pools.alone(4).run(train_and_resume, small_model, str(tmp_path), changes)[0])


@pytest.mark.parametrize("changes", [*QUANTISED, *OTHERS])
def test_it_trains_and_resumes_where_each_rank_has_it_whole(
    pools: Pools, small_model: str, tmp_path: Path, changes: Case
) -> None:
    check(pools.alone(1).run(train_and_resume, small_model, str(tmp_path), changes)[0])


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_train_and_resume(pools: Pools, small_model: str, tmp_path: Path, name: str) -> None:
    """Their collectives must match; each has a GPU of its own."""
    for report in pools.real(2).run(train_and_resume, small_model, str(tmp_path), STRATEGIES[name]):
        check(report)
