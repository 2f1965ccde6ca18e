"""Liger's norms and GeGLU against transformers' own, and a whole pass with them against one without."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import torch
from gemfleet.benchmarks.shared.random_base import text_config
from gemfleet.train.kernels.capabilities import abilities_of
from gemfleet.train.kernels.liger import use_liger
from support.gpu_proof.findings import apart, bf16_bound, ratio
from support.gpu_proof.stage import Stage, gradients
from torch import Tensor, nn

FP32, BF16_LOSS = 1e-4, 1e-2


def test_liger(stage: Stage) -> None:
    if not (stage.on_cuda and abilities_of(stage.device).triton and find_spec("liger_kernel")):
        stage.skip("Liger's kernels", "this is no GPU, or liger-kernel or triton is not installed")
        return
    for name, module, inputs in _modules(stage):
        exact = _through(module, inputs)
        liger = _exchanged(module)
        stage.at_most(f"{name}, fp32", apart(_through(liger, inputs), exact), FP32)
        narrow, narrow_liger = (copy.deepcopy(each).bfloat16() for each in (module, liger))
        bound = bf16_bound(_through(narrow, inputs.bfloat16()), exact)
        stage.at_most(f"{name}, bf16", apart(_through(narrow_liger, inputs.bfloat16()), exact), bound)
    _whole_pass(stage)


def _whole_pass(stage: Stage) -> None:
    exact_loss, exact = gradients(_plain(stage, "fp32"), stage.rows())
    _, peer = gradients(_plain(stage, "bf16"), stage.rows())
    model = _plain(stage, "bf16")
    exchanged = use_liger(model.text_model)
    stage.holds("norms and MLPs are exchanged", exchanged == 7 * stage.shape.layers + 1, f"{exchanged} are")
    loss, found = gradients(model, stage.rows())
    stage.at_most("a pass in bf16: loss", ratio(loss, exact_loss), BF16_LOSS)
    stage.at_most("a pass in bf16: gradients", apart(found, exact), bf16_bound(peer, exact))


def _modules(stage: Stage) -> list[tuple[str, Any, Tensor]]:
    """A norm over the hidden size, one over a head, and an MLP, with inputs for each."""
    from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP, Gemma3RMSNorm

    torch.manual_seed(3)
    shape, device = stage.shape, stage.device
    norms = [Gemma3RMSNorm(size, 1e-6).to(device) for size in (shape.hidden, shape.head_dim)]
    for norm in norms:
        norm.weight.data.normal_(0, 0.3)
    mlp = Gemma3MLP(text_config(shape)).to(device)
    wide = torch.randn(1, 333, shape.hidden, device=device)
    heads = torch.randn(1, 333, shape.heads, shape.head_dim, device=device).transpose(1, 2)
    parts = (("norm", norms[0], wide), ("norm of heads", norms[1], heads), ("GeGLU", mlp, wide))
    return [(name, module.requires_grad_(False), inputs) for name, module, inputs in parts]


def _exchanged(module: nn.Module) -> nn.Module:
    holder = nn.ModuleList([copy.deepcopy(module)])
    assert use_liger(holder) == 1
    return holder[0]


def _through(module: Any, inputs: Tensor) -> dict[str, Tensor]:
    inputs = inputs.detach().requires_grad_()
    output = module(inputs)
    generator = torch.Generator(inputs.device).manual_seed(4)
    (output.float() * torch.randn(output.shape, generator=generator, device=inputs.device)).sum().backward()
    assert inputs.grad is not None
    return {"output": output.detach(), "gradient": inputs.grad}


def _plain(stage: Stage, precision: str) -> Any:
    """With transformers' own norms and MLPs, wherever Liger is installed."""
    from gemfleet.train.model.gemma import attach_lora, load_base_model
    from support.gpu_proof.stage import fill_adapters

    config = stage.config()
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    model = attach_lora(load_base_model(stage.model_folder(), dtype, stage.device), config.lora, config.seed, "proof")
    fill_adapters(model.adapter_parameters())
    return model
