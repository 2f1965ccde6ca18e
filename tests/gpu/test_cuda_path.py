"""The CUDA path on one GPU: what runs there computes what is computed elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gemfleet.train.attention import Packing, packed_attention
from gemfleet.train.capabilities import AttentionKernel, Choices, abilities_of, choose
from gemfleet.train.config import TrainConfig
from gemfleet.train.device import choose_dtype, current_device
from gemfleet.train.model import TrainableModel, load_base_model, prepare_layers
from gemfleet.train.packing import pack_block
from gemfleet.train.quantization import dequantiser, is_quantised
from reference_step import Gradients, examples, relative_difference, trainable
from tiny_model import save_tiny_gemma3
from torch import Tensor, nn

pytestmark = pytest.mark.gpu

DOCUMENTS = (700, 5, 1300, 43)


def attention(kernel: AttentionKernel, inputs: tuple[Tensor, ...], window: int | None) -> tuple[Tensor, list[Tensor]]:
    """The output and the gradients of the three inputs."""
    query, key, value = (tensor.detach().requires_grad_() for tensor in inputs)
    ends = torch.tensor([0, *np.cumsum(DOCUMENTS)], dtype=torch.int32, device=query.device)
    options: dict[str, Any] = {"scaling": query.shape[-1] ** -0.5, "sliding_window": window}
    output, _ = packed_attention(
        nn.Identity(), query, key, value, None, packing=Packing(DOCUMENTS, ends, kernel), **options
    )
    weights = torch.randn(output.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    (output.float() * weights).sum().backward()
    return output.detach(), [tensor.grad for tensor in (query, key, value) if tensor.grad is not None]


@pytest.mark.parametrize("window", [None, 512])
@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("kernel", ["varlen", "flex"])
def test_packed_kernels_equal_sdpa_in_fp32(kernel: AttentionKernel, head_dim: int, window: int | None) -> None:
    """Both in bf16, against the same inputs in fp32: the kernel may err no more than SDPA in bf16 does, by half."""
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(1, heads, sum(DOCUMENTS), head_dim) for heads in (8, 4, 4)]
    wide = tuple(torch.randn(shape, generator=generator, device="cuda") for shape in shapes)
    narrow = tuple(tensor.bfloat16() for tensor in wide)
    exact = attention("sdpa", tuple(tensor.float() for tensor in narrow), window)
    ours, reference = attention(kernel, narrow, window), attention("sdpa", narrow, window)
    for got, bf16, want in zip((ours[0], *ours[1]), (reference[0], *reference[1]), (exact[0], *exact[1]), strict=True):
        allowed = 1.5 * float((bf16.float() - want).norm()) + 1e-3 * float(want.norm())
        assert float((got.float() - want).norm()) <= allowed


def test_the_choices_on_this_gpu_are_those_of_its_capability() -> None:
    facts = current_device(0)
    settled = {"strategy": "ddp", "activation_checkpointing": "off", "batch": {"micro": 1}}
    config = TrainConfig.model_validate({"model": "demo", "data": {"train": "demo"}, **settled})
    choices = choose(config, facts.device, choose_dtype("auto", facts))
    able = abilities_of(facts.device)
    assert able.capability == torch.cuda.get_device_capability()
    assert choices.compile == able.compiler
    if able.capability >= (8, 0):
        assert facts.bf16_gains
        assert choices.attention == "varlen"


def step(model: TrainableModel) -> tuple[float, Gradients]:
    model.peft_model.zero_grad()
    loss = model.loss_sum(pack_block(examples(), 64))
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in model.adapter_parameters().items() if p.grad is not None}


def test_a_step_equals_the_cpus() -> None:
    (loss, gradients), (expected_loss, expected) = step(trainable(device="cuda")), step(trainable())
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert relative_difference({n: g.cpu() for n, g in gradients.items()}, expected) < 1e-4


@pytest.mark.parametrize("recompute", ["off", "full"])
def test_compiled_layers_equal_eager_ones_and_compile_once(recompute: Any) -> None:
    torch._dynamo.reset()
    eager, compiled = trainable(device="cuda"), trainable(device="cuda")
    prepare_layers(compiled, Choices("sdpa", "torch", compile=True, activation_checkpointing=recompute))
    step(compiled)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            (loss, gradients), (expected_loss, expected) = step(compiled), step(eager)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert relative_difference(gradients, expected) < 1e-3


@pytest.mark.parametrize("quantization", ["int4", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_base_trains_as_its_dequantised_twin(tmp_path: Path, quantization: Any, dtype: torch.dtype) -> None:
    from gemfleet.train.model import attach_lora
    from reference_step import LORA, fill_adapters

    folder, device = save_tiny_gemma3(tmp_path), torch.device("cuda", 0)
    base, twin = load_base_model(folder, dtype, device, quantization), load_base_model(folder, dtype, device)
    for name, layer in base.named_modules():
        if is_quantised(layer):
            dequantise = dequantiser(layer)
            assert dequantise is not None
            twin.get_submodule(name).weight.data = dequantise(layer.weight, dtype)
    models = [attach_lora(model, LORA, 0, "tiny") for model in (base, twin)]
    for model in models:
        fill_adapters(model.peft_model)
    (loss, gradients), (expected_loss, expected) = map(step, models)
    assert loss == expected_loss
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)


def test_memory_that_runs_out_is_told_and_half_the_rows_train(tmp_path: Path) -> None:
    """As in a run: the step fails with the micro-batch in the message, and what was held is free again afterwards."""
    from gemfleet.train.batch_finder.probe import worst_rows
    from gemfleet.train.out_of_memory import OutOfMemoryError, told_out_of_memory

    device = torch.device("cuda", 0)
    model, torch_memory = trainable(device="cuda"), torch.cuda
    rows = {micro: worst_rows(micro, 1024, 512) for micro in (8, 64)}
    model.loss_sum(rows[8]).backward()
    used = torch_memory.max_memory_reserved(device)
    total = torch_memory.get_device_properties(device).total_memory
    torch_memory.empty_cache()
    torch_memory.set_per_process_memory_fraction(2 * used / total, device)
    try:
        with pytest.raises(OutOfMemoryError, match="64 rows in a pass"), told_out_of_memory(64):
            model.loss_sum(rows[64]).backward()
        model.peft_model.zero_grad()
        torch_memory.empty_cache()
        model.loss_sum(rows[8]).backward()
    finally:
        torch_memory.set_per_process_memory_fraction(1.0, device)
    assert all(parameter.grad is not None for parameter in model.adapter_parameters().values())
