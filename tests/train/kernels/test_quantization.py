"""Training over a quantised base is training over its dequantised weights, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gemfleet.train.config.schema import Quantization, TrainConfig
from gemfleet.train.config.sections.recipe import LoraConfig
from gemfleet.train.data.packing import pack_block
from gemfleet.train.kernels.activation_checkpointing import checkpoint_layers
from gemfleet.train.kernels.nf4 import BLOCK_WEIGHTS, clip_blocks, rounded
from gemfleet.train.kernels.quantization import dequantiser, is_quantised
from gemfleet.train.model.gemma import LINEAR_MODULES, TrainableModel, attach_lora, load_base_model
from support.reference_step import LORA, Gradients, examples, fill_adapters
from support.tiny_model import save_tiny_gemma3
from torch import nn

CPU = torch.device("cpu")
QUANTISATIONS: list[Quantization] = ["int4", "int8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gemma3(tmp_path_factory.mktemp("tiny"))


def with_adapters(base: Any, lora: LoraConfig = LORA) -> TrainableModel:
    model = attach_lora(base, lora, 0, "tiny")
    fill_adapters(model.peft_model)
    return model


def dense_twin(quantised: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The plain model whose linear layers hold what the quantised ones stand for."""
    plain = load_base_model(folder, dtype, CPU)
    for name, layer in quantised.named_modules():
        if is_quantised(layer):
            dequantise = dequantiser(layer)
            assert dequantise is not None
            plain.get_submodule(name).weight.data = dequantise(layer.weight, dtype)
    return plain


def step(model: TrainableModel) -> tuple[float, Gradients]:
    torch.manual_seed(3)
    loss = model.loss_sum(pack_block(examples(), 64))
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in model.adapter_parameters().items() if p.grad is not None}


def assert_equal_steps(ours: TrainableModel, theirs: TrainableModel) -> None:
    (loss, gradients), (expected_loss, expected) = step(ours), step(theirs)
    assert loss == expected_loss
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert all(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("quantization", QUANTISATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]], ids=["all", "some"])
def test_equals_the_dequantised_model(
    folder: Path, quantization: Quantization, dtype: torch.dtype, targets: Any
) -> None:
    lora = LORA.model_copy(update={"target_modules": targets, "dropout": 0.2})
    base = load_base_model(folder, dtype, CPU, quantization)
    assert (
        kinds(base, 4)
        == {"int4": {"q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}, "int8": set()}[quantization]
    )
    assert kinds(base, 8) == set(LINEAR_MODULES) - kinds(base, 4)
    assert type(base.lm_head) is nn.Linear
    plain = dense_twin(base, folder, dtype)
    ours = with_adapters(base, lora)
    fused = [module for module in ours.peft_model.modules() if type(module).__name__.startswith("Fused")]
    assert len(fused) == len(ours.peft_model.targeted_module_names)
    assert_equal_steps(ours, with_adapters(plain, lora))


def kinds(base: Any, bits: int) -> set[str]:
    """Names of the projections that have so many bits, in every layer alike."""
    names = [n for n, m in base.named_modules() if is_quantised(m) and f"{bits}bit" in type(m).__name__]
    found = {name.rpartition(".")[2] for name in names}
    assert len(names) == len(found) * len(base.model.layers)
    return found


def test_int4_keeps_eight_bits_where_the_embedding_outweighs_the_layers(tmp_path: Path) -> None:
    """As in the 270M, where four bits less of the MLP would save little and cost most."""
    folder = save_tiny_gemma3(tmp_path, vocab_size=8192)
    base = load_base_model(folder, torch.float32, CPU, "int4")
    assert kinds(base, 8) == {"k_proj", "v_proj", "up_proj", "down_proj"}
    twin, plain = dense_twin(base, folder, torch.float32), load_base_model(folder, torch.float32, CPU)
    for name in ("model.layers.1.mlp.up_proj", "model.layers.2.self_attn.k_proj"):
        weight = plain.get_submodule(name).weight
        assert 0 < (twin.get_submodule(name).weight - weight).norm() / weight.norm() < 0.01


def test_clipped_blocks_lose_less_and_a_scale_search_never_more() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 96).to(torch.bfloat16)
    weight[:, ::32] *= 3  # outliers
    clipped = clip_blocks(weight)
    assert clipped.dtype == weight.dtype
    assert clipped.shape == weight.shape

    def errors(stored: torch.Tensor) -> torch.Tensor:
        blocks = stored.float().reshape(-1, BLOCK_WEIGHTS)
        kept = rounded(blocks, blocks.abs().amax(1, keepdim=True))
        return (kept - weight.float().reshape(-1, BLOCK_WEIGHTS)).square().sum(1)

    assert (errors(clipped) <= errors(weight) * 1.01).all()
    assert errors(clipped).sum() < 0.95 * errors(weight).sum()
    odd = torch.randn(3, 5)
    assert clip_blocks(odd) is odd


@pytest.mark.parametrize("quantization", QUANTISATIONS)
def test_the_weights_are_near_those_of_the_checkpoint(folder: Path, quantization: Quantization) -> None:
    base, plain = load_base_model(folder, torch.float32, CPU, quantization), load_base_model(folder, torch.float32, CPU)
    twin = dense_twin(base, folder, torch.float32)
    layer, tolerance = "model.layers.1.mlp.up_proj", {"int4": 0.09, "int8": 0.01}[quantization]
    weight, stored = plain.get_submodule(layer).weight, base.get_submodule(layer).weight
    assert 0 < (twin.get_submodule(layer).weight - weight).norm() / weight.norm() < tolerance
    assert stored.numel() * stored.element_size() == weight.numel() // {"int4": 2, "int8": 1}[quantization]


@pytest.mark.parametrize("quantization", QUANTISATIONS)
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputing_changes_nothing(folder: Path, quantization: Quantization, mode: Any) -> None:
    first, second = (with_adapters(load_base_model(folder, torch.float32, CPU, quantization)) for _ in range(2))
    checkpoint_layers(second.layers, mode)
    assert_equal_steps(second, first)


@pytest.mark.parametrize("quantization", QUANTISATIONS)
def test_an_evaluation_between_steps_changes_nothing(folder: Path, quantization: Quantization) -> None:
    """bitsandbytes repacks 4-bit weights for the CPU when a layer of its own is evaluated; they cannot train then."""
    some = LORA.model_copy(update={"target_modules": ["q_proj"]})
    model = with_adapters(load_base_model(folder, torch.bfloat16, CPU, quantization), some)
    before = step(model)[0]
    model.peft_model.eval()
    with torch.no_grad():
        evaluated = float(model.loss_sum(pack_block(examples(), 64)))
    model.peft_model.train()
    assert (evaluated, step(model)[0]) == (before, before)


def demo_config(**changes: Any) -> TrainConfig:
    values = {
        "model": "demo",
        "data": {"train": "demo", "max_length": 256, "limit": 320},
        "batch": {"global": 8, "micro": 1},
        "strategy": "ddp",
        "activation_checkpointing": "off",
        "optim": {"learning_rate": 5e-4},
        "max_steps": 30,
        "evaluation": {"every": "never"},
        "checkpoint": {"every": "never"},
        "precision": "bf16",
    }
    return TrainConfig.model_validate({**values, **changes})


@pytest.mark.slow
@pytest.mark.long
def test_the_real_model_learns_quantised(demo_model: Path, tmp_path: Path) -> None:
    from gemfleet.train.local.reporter import LocalReporter
    from gemfleet.train.local.source import prepare_local
    from gemfleet.train.worker import run_training
    from transformers import AutoTokenizer

    config, tokenizer = demo_config(), AutoTokenizer.from_pretrained(demo_model)
    source, _ = prepare_local(config.data, config.batch.global_, config.seed, tokenizer, 1)
    losses = {}
    for quantization in ("none", *QUANTISATIONS):
        work = tmp_path / quantization
        work.mkdir()
        with LocalReporter(work, 0, resume=False) as reporter:
            chosen = config.model_copy(update={"quantization": quantization})
            result = run_training(chosen, demo_model, source, reporter, 0, 0, work)
        assert result.eval_loss is not None
        assert result.eval_loss_before is not None
        losses[quantization] = result.eval_loss
        print(f"{quantization:5} {result.eval_loss_before:.4f} -> {result.eval_loss:.4f} after {result.steps} steps")
        assert result.eval_loss < 0.9 * result.eval_loss_before
    assert losses["int8"] == pytest.approx(losses["none"], rel=0.03)
    assert losses["int4"] == pytest.approx(losses["none"], rel=0.03)
