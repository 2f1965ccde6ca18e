"""Norms, GeGLU and rotary embedding by our own C++ equal transformers' but for roundings of bf16."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from gemfleet.train.config import home
from gemfleet.train.data.packing import pack_block
from gemfleet.train.kernels.fused import library, modules
from gemfleet.train.kernels.fused.modules import use_fused
from gemfleet.train.model.gemma import TrainableModel
from support.reference_step import examples, trainable
from torch import Tensor
from torch.nn import functional
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm, apply_rotary_pos_emb

pytestmark = pytest.mark.skipif(home.cpp_compiler() is None, reason="needs a C++ compiler")
ROUNDING = 2.0**-8  # of bf16


def bf16(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape) * scale).to(torch.bfloat16).requires_grad_()


def assert_alike(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], inputs: list[Tensor]) -> None:
    """Output and gradients differ by a rounding, or two where torch rounds in between; some large, some tiny inputs."""
    made, expected = ours(), theirs()
    assert (made.dtype, made.stride()[1:]) == (expected.dtype, expected.stride()[1:])
    upstream = torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad(made, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    )
    for one, other in [(made, expected), *pairs]:
        bound = 2 * ROUNDING * other.float().abs() + ROUNDING * other.float().abs().mean()
        assert ((one.float() - other.float()).abs() <= bound).float().mean() > 0.99
        assert (one.float() - other.float()).norm() <= ROUNDING * other.float().norm()


@pytest.mark.parametrize("width", [3, 17, 64, 640])
def test_a_norm_equals_transformers(width: int) -> None:
    torch.manual_seed(width)
    norm = Gemma3RMSNorm(width).to(torch.bfloat16).requires_grad_(False)
    norm.weight.data.normal_()
    x = bf16(1, 29, width, scale=30.0)
    assert_alike(lambda: modules._Norm.apply(x, norm.weight, norm.eps), lambda: norm(x), [x])


def test_a_norm_of_heads_leaves_them_as_they_lie() -> None:
    torch.manual_seed(0)
    norm = Gemma3RMSNorm(32).to(torch.bfloat16).requires_grad_(False)
    x = bf16(1, 11, 4, 32)
    heads = x.transpose(1, 2)
    assert_alike(lambda: modules._Norm.apply(heads, norm.weight, norm.eps), lambda: norm(heads), [x])


def test_the_rotary_embedding_equals_transformers() -> None:
    torch.manual_seed(0)
    x, angles = bf16(1, 19, 4, 32), torch.randn(1, 19, 16).repeat(1, 1, 2)
    cosine, sine, heads = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16), x.transpose(1, 2)
    theirs = lambda: apply_rotary_pos_emb(heads, heads, cosine, sine)[0]  # noqa: E731
    assert_alike(lambda: modules._Rotate.apply(heads, cosine[0], sine[0]), theirs, [x])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_geglu_equals_torch(scale: float) -> None:
    torch.manual_seed(0)
    gate, up = bf16(1, 57, 33, scale=scale), bf16(1, 57, 33)
    theirs = lambda: functional.gelu(gate, approximate="tanh") * up  # noqa: E731
    assert_alike(lambda: modules._GeGlu.apply(gate, up), theirs, [gate, up])


def test_what_is_no_number_stays_so() -> None:
    gate = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.0]], dtype=torch.bfloat16)
    made = modules._GeGlu.apply(gate, torch.ones_like(gate))
    assert made.isnan().tolist()[0][0]
    assert not made.isfinite().tolist()[0][1]
    normed = modules._Norm.apply(gate, torch.zeros(4, dtype=torch.bfloat16), 1e-6)
    assert normed.isnan().any()


def test_every_norm_and_mlp_is_exchanged_and_the_step_stays() -> None:
    plain, exchanged = (trainable(dtype=torch.bfloat16) for _ in range(2))
    names, layers = list(exchanged.peft_model.state_dict()), len(exchanged.layers)
    assert use_fused(exchanged.text_model) == layers * (4 + 2 + 2) + 1  # norms, head norms, both halves; the final norm
    assert list(exchanged.peft_model.state_dict()) == names
    exact, (ours, theirs) = step(trainable()), (step(model) for model in (exchanged, plain))
    assert ours[0] == pytest.approx(exact[0], rel=2e-3)
    assert (ours[1] - exact[1]).norm() <= 1.1 * (theirs[1] - exact[1]).norm() <= 0.2 * exact[1].norm()


def step(model: TrainableModel) -> tuple[float, Tensor]:
    """The loss and all gradients in a row."""
    loss = model.loss_sum(pack_block(examples(), 64))
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.adapter_parameters().values() if p.grad is not None])


def test_a_norm_gives_no_view_where_its_input_is_none() -> None:
    """FSDP2 warns of a model that returns a view, and the final norm makes what Gemma 3 returns."""
    norm = Gemma3RMSNorm(8).to(torch.bfloat16).requires_grad_(False)
    assert not modules._Norm.apply(bf16(1, 3, 8), norm.weight, norm.eps)._is_view()


@pytest.mark.parametrize("line", ["model name\t: A", "flags\t\t: avx2", "CPU part\t: 0xd40", "Features\t: sve"])
def test_cpus_on_one_home_have_libraries_of_their_own(line: str) -> None:
    same = "processor\t: 0\ncpu MHz\t\t: 2100.1\n"
    assert library._cpu(same) == library._cpu(same.replace("2100", "900")) != library._cpu(f"{same}{line}\n")


def test_ranks_that_need_the_library_at_once_build_it_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler, calls = tmp_path / "g++", tmp_path / "calls"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nsleep 0.3\nwhile [ $# -gt 1 ]; do shift; done\n: > "$1"\n')
    compiler.chmod(0o755)
    monkeypatch.setattr(library, "cache_folder", lambda name: tmp_path)
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(3) as ranks:
        built = {ranks.submit(library._built, str(compiler), "libgomp.so") for _ in range(3)}
        assert len({one.result() for one in built}) == 1
    assert sum("-shared" in line for line in calls.read_text().splitlines()) == 1


def test_openmp_is_found_below_a_path_with_spaces_and_it_is_that_of_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "my home" / "torch" / "lib" / "libgomp.so.1"
    line = "7f00-7f01 r-xp 00000000 08:01 17      "
    text = f"{line}/usr/lib/libgomp-1.so\n7f02-7f03 rw-p 00000000 00:00 0\n{line}{own}\n"
    monkeypatch.setattr(torch, "__file__", str(own.parents[1] / "__init__.py"))
    monkeypatch.setattr(Path, "read_text", lambda self, **how: text)
    assert library._openmp_of_torch() == str(own)


def test_without_a_compiler_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(library, "cpp_compiler", home.cpp_compiler.__wrapped__)
    monkeypatch.setattr(modules, "library", library.library.__wrapped__)
    assert use_fused(trainable(dtype=torch.bfloat16).text_model) == 0
