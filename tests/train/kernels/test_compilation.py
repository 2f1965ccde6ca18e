"""Compiled layers compute what eager ones do, and nothing is compiled again once training runs."""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.kernels import compilation
from gemfleet.train.kernels.activation_checkpointing import RecomputedForward
from gemfleet.train.kernels.capabilities import Choices, choose
from gemfleet.train.kernels.compilation import SELECTIVE_BUDGET, compile_layers, has_compiler
from gemfleet.train.model.gemma import TrainableModel, attach_lora, load_base_model, prepare_layers
from support.compiled_case import PASSES, rows_of, run_passes
from support.rank_pool import RankPool
from support.reference_step import LORA, Gradients, trainable
from support.tiny_model import save_tiny_gemma3

CPU = torch.device("cpu")


def step(model: TrainableModel, rows: PackedRows) -> tuple[float, Gradients]:
    model.peft_model.zero_grad()
    loss = model.loss_sum(rows)
    loss.backward()
    gradients = {n: p.grad for n, p in model.adapter_parameters().items() if p.grad is not None}
    return float(loss.detach()), gradients


def evaluate(model: TrainableModel, rows: PackedRows) -> float:
    model.peft_model.eval()
    with torch.no_grad():
        loss = float(model.loss_sum(rows))
    model.peft_model.train()
    return loss


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [pytest.param("off", marks=pytest.mark.long), "full"])
def test_equals_eager_and_compiles_nothing_after_the_warm_up(recompute: Any) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    eager, compiled = trainable(), trainable()
    prepare_layers(compiled, Choices("sdpa", "torch", compile=True, activation_checkpointing=recompute))
    # In the first pass all is equal that may be: its tokens, those of its longest document and the model's width.
    step(compiled, rows_of((64,)))
    evaluate(compiled, rows_of((64,)))
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 16
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed, lengths in enumerate(PASSES):
            rows = rows_of(lengths, seed)
            (loss, gradients), (expected_loss, expected) = step(compiled, rows), step(eager, rows)
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            for name, gradient in expected.items():  # all zero where a pass has nothing to score
                assert float((gradients[name] - gradient).norm()) <= 1e-4 * float(gradient.norm())
            assert evaluate(compiled, rows) == pytest.approx(expected_loss, rel=1e-5)
    print(
        f"recomputation {recompute}: {graphs} graphs after the warm-up, {counters['stats']['unique_graphs']} at the end"
    )
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "strategy", "bits", "precision", "recompute"),
    [
        pytest.param(1, "ddp", "int4", "fp32", "full", marks=pytest.mark.long),
        (1, "ddp", "int8", "bf16", "off"),
        pytest.param(2, "fsdp2", "none", "fp32", "full", marks=pytest.mark.long),
        pytest.param(2, "fsdp2", "int4", "fp32", "off", marks=pytest.mark.long),
        pytest.param(2, "fsdp2", "int4", "bf16", "full", marks=pytest.mark.long),
        pytest.param(2, "fsdp2", "int8", "fp32", "selective", marks=pytest.mark.long),
    ],
)
def test_layers_of_divided_and_quantised_bases_compile(
    tmp_path: Path, ranks: int, strategy: str, bits: str, precision: str, recompute: str
) -> None:
    folder = str(save_tiny_gemma3(tmp_path, layers=2))
    changes = {"strategy": strategy, "quantization": bits, "precision": precision}
    changes["activation_checkpointing"] = recompute
    with RankPool(ranks) as pool:
        compiled, plain = (pool.run(run_passes, folder, {**changes, "compile": c})[0] for c in (True, False))
    print(f"\n{changes}: {compiled.graphs_after_warm_up} graphs after the warm-up, {compiled.graphs} at the end")
    assert 0 < compiled.graphs == compiled.graphs_after_warm_up
    assert plain.graphs == 0
    if precision == "fp32":
        assert compiled.losses == pytest.approx(plain.losses, rel=1e-5)
        assert compiled.norms == pytest.approx(plain.norms, rel=1e-4)
    else:  # a pass may score two tokens, whose losses are mostly rounding, as the tiny model's gradients are
        assert sum(compiled.losses) == pytest.approx(sum(plain.losses), rel=1e-3)
        assert compiled.losses == pytest.approx(plain.losses, rel=3e-3)


@pytest.mark.slow
def test_compiled_layers_keep_no_dense_weight_of_a_quantised_base(tmp_path: Path) -> None:
    """The compiler would make each weight dense once, and keep all of them from forward to backward."""
    base = load_base_model(save_tiny_gemma3(tmp_path, layers=2), torch.float32, CPU, "int4")
    model, kept = attach_lora(base, LORA, 0, "tiny"), set[tuple[int, ...]]()
    prepare_layers(model, Choices("sdpa", "torch", compile=True, activation_checkpointing="off"))

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.add(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model.loss_sum(rows_of((9,))).backward()
    assert kept & {(2048, 1), (4096, 1)}, "codes"
    assert not kept & {(64, 64), (64, 128), (128, 64)}


def config(**changes: Any) -> TrainConfig:
    values = {"model": "demo", "data": {"train": "demo", "max_length": 64}, "batch": {"micro": 3}}
    settled = {"strategy": "ddp", "activation_checkpointing": "off"}
    return TrainConfig.model_validate({**values, **settled, **changes})


def test_zero_is_not_compiled() -> None:
    with pytest.raises(ValueError, match=r"train\.compile is true with train\.strategy deepspeed.*compile: auto"):
        config(strategy="deepspeed", compile=True)
    assert config(strategy="fsdp2", quantization="int8", compile=True).compile is True


@pytest.mark.parametrize("mode", ["off", "selective", "full"])
def test_what_is_recomputed_by_the_compiler_and_what_around_it(mode: Any) -> None:
    """`selective` is the compiler's; under `full` it sees no less of a layer, which is run again as a whole."""
    model = trainable()
    choices = choose(config(compile=True, activation_checkpointing=mode), CPU, torch.float32)
    prepare_layers(model, choices)
    assert torch._functorch.config.activation_memory_budget == (SELECTIVE_BUDGET if mode == "selective" else 1.0)
    assert isinstance(model.layers[0].forward, RecomputedForward) == (mode == "full")
    assert ("selective, by the compiler" in choices.describe()) == (mode == "selective")


def test_without_a_compiler_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none_found() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch._inductor.cpp_builder, "get_cpp_compiler", none_found)
    has_compiler.cache_clear()
    with pytest.raises(UserError, match=r"no C\+\+ compiler .* train\.compile: false"):
        compile_layers(trainable().layers)
    has_compiler.cache_clear()


needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@pytest.fixture
def triton_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "triton")
    monkeypatch.delenv("CC", raising=False)


@needs_gcc
@pytest.mark.usefixtures("triton_installed")
def test_triton_builds_with_a_compiler_and_pythons_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    builds = compilation.triton_builds.__wrapped__
    assert builds()
    monkeypatch.setenv("CC", "gcc")
    assert builds()


@needs_gcc
@pytest.mark.usefixtures("triton_installed")
@pytest.mark.parametrize("lacking", ["compiler", "named compiler", "headers", "triton"])
def test_triton_does_not_build_without(lacking: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if lacking == "compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif lacking == "named compiler":
        monkeypatch.setenv("CC", str(tmp_path / "gcc"))
    elif lacking == "headers":
        monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(compilation, "triton_builds", compilation.triton_builds.__wrapped__)
    assert not compilation.triton_builds()
    with pytest.raises(
        UserError, match=r"no Triton that can build .* gcc and Python's headers .* train\.compile: false"
    ):
        compilation.refuse_without_compiler(on_gpu=True)
