"""Liger's kernels in the model: on a GPU the real ones, elsewhere torch's arithmetic behind Liger's signatures."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast

import pytest
import torch
from gemfleet.train.data.packing import pack_block
from gemfleet.train.kernels import liger
from gemfleet.train.kernels.liger import use_liger
from gemfleet.train.model.gemma import TrainableModel
from support.places import TESTS
from support.reference_step import Gradients, examples, trainable
from torch import Tensor
from torch.nn import functional


class RmsNorm:
    """`LigerRMSNormFunction` of liger-kernel 0.8 as its documentation describes it."""

    @staticmethod
    def apply(x: Tensor, w: Tensor, eps: float, offset: float, casting_mode: str, in_place: bool) -> Tensor:
        assert (casting_mode, in_place) == ("gemma", False)
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * (w.float() + offset)).to(x.dtype)


class GeluMul:
    """`LigerGELUMulFunction`: tanh-approximated GELU of the first, times the second."""

    @staticmethod
    def apply(gate: Tensor, up: Tensor) -> Tensor:
        return functional.gelu(gate, approximate="tanh") * up


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    package, ops = ModuleType("liger_kernel"), cast(Any, ModuleType("liger_kernel.ops"))
    package.__spec__ = ModuleSpec("liger_kernel", None)  # transformers looks for it
    ops.LigerRMSNormFunction, ops.LigerGELUMulFunction = RmsNorm, GeluMul
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", ops)
    for made in (liger._norm_kind, liger._mlp_kind):
        monkeypatch.setattr(liger, made.__name__, made.__wrapped__)


def step(model: TrainableModel) -> tuple[float, Gradients]:
    loss = model.loss_sum(pack_block(examples(), 64))
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in model.adapter_parameters().items() if p.grad is not None}


def assert_same_step(ours: TrainableModel, theirs: TrainableModel, tolerance: float) -> None:
    (loss, gradients), (expected_loss, expected) = step(ours), step(theirs)
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 10 * tolerance * expected[name].norm()


@pytest.mark.usefixtures("stand_in")
def test_every_norm_and_mlp_is_exchanged_and_the_step_stays() -> None:
    plain, exchanged = trainable(), trainable()
    names = list(exchanged.peft_model.state_dict())
    layers = len(exchanged.layers)
    assert use_liger(exchanged.text_model) == layers * (4 + 2 + 1) + 1  # norms, head norms, the MLP; the final norm
    assert use_liger(exchanged.text_model) == 0
    assert list(exchanged.peft_model.state_dict()) == names
    assert_same_step(exchanged, plain, 1e-6)


@pytest.mark.triton
def test_the_kernels_interpreted_equal_transformers() -> None:
    """The kernels' own arithmetic, by Triton's interpreter on this CPU."""
    for package in ("triton", "liger_kernel"):
        pytest.importorskip(package, reason="needs the gpu extra")
    program = TESTS / "support" / "liger_interpreted.py"
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == 8
    for result in results:
        bound = 1e-6 if "float32" in result["case"] else 2e-3
        assert result["output"] < bound, result
        assert result["gradient"] < bound, result
        assert result["same_dtypes"], result


@pytest.mark.gpu
def test_the_kernels_equal_torch_on_a_gpu() -> None:
    pytest.importorskip("liger_kernel", reason="needs the gpu extra")
    plain, exchanged = (trainable(device="cuda") for _ in range(2))
    use_liger(exchanged.text_model)
    assert_same_step(exchanged, plain, 1e-5)
