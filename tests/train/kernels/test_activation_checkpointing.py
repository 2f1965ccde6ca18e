"""Recomputing in backward changes memory and time, and no number."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch
from gemfleet.train.config.load import parse_yaml
from gemfleet.train.config.schema import ActivationCheckpointing, TrainConfig
from gemfleet.train.config.sections.recipe import LoraConfig
from gemfleet.train.data.packing import pack_block
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.kernels.activation_checkpointing import RecomputedForward, checkpoint_layers
from gemfleet.train.kernels.attention.flex import DocumentMasks, flex
from gemfleet.train.model.gemma import TrainableModel, attach_lora
from support.reference_step import LORA, Gradients, examples, fill_adapters
from support.tiny_model import tiny_gemma3
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MODES: list[ActivationCheckpointing] = ["selective", "full"]


def model_with(mode: ActivationCheckpointing, dtype: torch.dtype, lora: LoraConfig = LORA) -> TrainableModel:
    model = attach_lora(tiny_gemma3().to(dtype).requires_grad_(False), lora, 0, "tiny")
    fill_adapters(model.peft_model)
    checkpoint_layers(model.layers, mode)
    return model


def one_pass(model: TrainableModel, rows: PackedRows) -> tuple[float, Gradients]:
    torch.manual_seed(5)
    loss = model.loss_sum(rows)
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in model.adapter_parameters().items() if p.grad is not None}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_equals_off_bit_for_bit(mode: ActivationCheckpointing, dtype: torch.dtype, dropout: float) -> None:
    rows = pack_block(examples(), 64)
    lora = LORA.model_copy(update={"dropout": dropout})
    expected_loss, expected = one_pass(model_with("off", dtype, lora), rows)
    loss, gradients = one_pass(model_with(mode, dtype, lora), rows)
    assert loss == expected_loss
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert all(gradient.any() for gradient in gradients.values())


class CreatedStorages(TorchDispatchMode):
    """Remembers, weakly, every storage that an operator returned."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._seen[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result

    def alive_bytes(self, without: Iterable[torch.Tensor]) -> int:
        weights = {tensor.untyped_storage()._cdata for tensor in without}
        return sum(size for key, (ref, size) in self._seen.items() if key not in weights and not ref.expired())


def kib_kept_a_token(mode: ActivationCheckpointing) -> float:
    """What the decoder keeps between forward and backward."""
    model = model_with(mode, torch.float32)
    inputs = model.inputs_of(pack_block(examples(), 64))
    created = CreatedStorages()
    with created:
        hidden = model.hidden_states(inputs)
    kept = created.alive_bytes(model.peft_model.parameters()) / 1024 / len(inputs.tokens)
    hidden.sum().backward()
    return kept


def test_full_keeps_least_and_selective_less_than_off() -> None:
    off, selective, full = (kib_kept_a_token(mode) for mode in ("off", "selective", "full"))
    print(f"KiB kept a token: off {off:.1f}, selective {selective:.1f}, full {full:.1f}")
    assert full < 0.15 * off
    assert full < selective < 0.6 * off


@pytest.mark.parametrize("mode", ["off", *MODES])
def test_evaluation_recomputes_nothing(mode: ActivationCheckpointing) -> None:
    model, rows = model_with(mode, torch.float32), pack_block(examples(), 64)
    with torch.no_grad():
        loss = model.loss_sum(rows)
    assert not loss.requires_grad
    assert float(loss) == pytest.approx(one_pass(model, rows)[0], rel=1e-6)


def test_a_bare_off_is_not_mistaken_for_false() -> None:
    values = parse_yaml("{model: demo, data: {train: demo}, activation_checkpointing: off}")
    assert TrainConfig.model_validate(values).activation_checkpointing == "off"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_and_compiled_functions_run_where_results_are_kept() -> None:
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    layer, sine = torch.nn.Identity(), torch.compile(torch.sin, backend=backend)
    function = RecomputedForward(layer, sine, selective=True)
    given = torch.ones(3, requires_grad=True)
    function(given).sum().backward()
    assert compiled
    assert given.grad is not None
    assert torch.allclose(given.grad, torch.ones(3).cos())
    query, key, masks = (
        torch.randn(1, 2, 9, 16),
        torch.randn(1, 1, 9, 16),
        DocumentMasks(torch.zeros(9, dtype=torch.int)),
    )
    attend = partial(flex, masks=masks, scaling=1.0, window=None)
    assert torch.equal(RecomputedForward(layer, attend, selective=True)(query, key, key), attend(query, key, key))
