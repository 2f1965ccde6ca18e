"""Fused projections: what they compute together, and that what they read are the parameters as they are now."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gemfleet.train.config.sections.recipe import LoraConfig
from gemfleet.train.data.packing import pack_block
from gemfleet.train.kernels.shared_inputs import SharedInput
from gemfleet.train.model.gemma import TrainableModel, attach_lora
from support.reference_step import LORA, Gradients, examples, fill_adapters, relative_difference, trainable
from support.tiny_model import tiny_gemma3
from torch.utils._python_dispatch import TorchDispatchMode

TARGETS: list[Any] = ["all-linear", ["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]]


def model_of(lora: LoraConfig = LORA, dtype: torch.dtype = torch.float32, layers: int = 4) -> TrainableModel:
    base = tiny_gemma3(layers=layers).requires_grad_(False).to(dtype)
    model = attach_lora(base, lora, 0, "tiny")
    fill_adapters(model.peft_model)
    return model


def step(model: TrainableModel) -> tuple[float, Gradients]:
    loss = model.loss_sum(pack_block(examples(), 64))
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in model.adapter_parameters().items() if p.grad is not None}


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_together_they_compute_what_each_computes_alone(targets: Any) -> None:
    lora = LORA.model_copy(update={"target_modules": targets})
    together, alone = model_of(lora), model_of(lora)
    alone.copies = None
    (loss, gradients), (expected_loss, expected) = step(together), step(alone)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert relative_difference(gradients, expected) < 1e-5


class Counted(TorchDispatchMode):
    """How often each operator ran, and how often one read an adapter by itself."""

    def __init__(self, model: TrainableModel) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}
        self.casts = 0
        self._adapters = {parameter.data_ptr() for parameter in model.adapter_parameters().values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        self.calls[name] = self.calls.get(name, 0) + 1
        if name == "aten::_to_copy" and args[0].data_ptr() in self._adapters:
            self.casts += 1
        return func(*args, **(kwargs or {}))


def counted(layers: int, dtype: torch.dtype) -> Counted:
    model = model_of(LORA, dtype, layers)
    counts = Counted(model)
    with counts:
        step(model)
    return counts


def test_a_pass_casts_no_adapter_by_itself() -> None:
    assert counted(2, torch.bfloat16).casts == 0


def test_projections_of_one_input_share_products() -> None:
    two, four = counted(2, torch.float32), counted(4, torch.float32)
    products = {name: (four.calls[name] - two.calls[name]) // 2 for name in ("aten::mm", "aten::addmm_")}
    # A layer's forward: 7 of the base and 4 with stacked A; backward: 4 first gradients of the inputs, 7 with B, 4 of
    # the stacked A, 7 of B. In place: the adapters' 7, 3 more gradients of an input, and the adapters' 4.
    assert products == {"aten::mm": 7 + 4 + 4 + 7 + 4 + 7, "aten::addmm_": 7 + 3 + 4}


def test_with_dropout_each_adapter_has_an_input_of_its_own() -> None:
    model = model_of(LORA.model_copy(update={"dropout": 0.1}))
    assert not any(isinstance(module, SharedInput) for module in model.peft_model.modules())


def test_a_pass_reads_the_parameters_as_they_are_now() -> None:
    model, rows = trainable(), pack_block(examples(), 64)
    before = float(model.loss_sum(rows).detach())
    for parameter in model.adapter_parameters().values():
        parameter.data.mul_(1.5)  # as a restored checkpoint does, which no version counter sees
    after, changed = float(model.loss_sum(rows).detach()), trainable()
    for parameter in changed.adapter_parameters().values():
        parameter.data = parameter.data * 1.5
    assert after != before
    assert after == float(changed.loss_sum(rows).detach())


def test_without_its_adapters_the_model_is_the_base() -> None:
    model, rows = trainable(), pack_block(examples(), 64)
    adapted = float(model.loss_sum(rows).detach())
    with model.peft_model.disable_adapter():
        plain = float(model.loss_sum(rows).detach())
    bare = trainable()
    for name, parameter in bare.adapter_parameters().items():
        if "lora_B" in name:
            parameter.data.zero_()
    assert plain == pytest.approx(float(bare.loss_sum(rows).detach()), rel=1e-6)
    assert float(model.loss_sum(rows).detach()) == adapted != plain
