"""Attention by matrix products over blocks equals SDPA with a mask, forward and backward, wherever blocks end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gemfleet.train.kernels.activation_checkpointing import checkpoint_layers
from gemfleet.train.kernels.attention import blocks
from gemfleet.train.kernels.attention.blocks import block_attention
from torch import Tensor, nn
from torch.nn import functional

LENGTHS = (21, 1, 8, 40)
HEADS, WIDTH, SCALE = 4, 16, 0.25


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_QUERIES", 8)


def drawn(kv_heads: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key, value as a projection leaves them, [heads, T, d] seen through [T, heads, d]; and an upstream."""
    torch.manual_seed(0)
    tokens = sum(LENGTHS)
    shapes = [(tokens, heads, WIDTH) for heads in (HEADS, kv_heads, kv_heads, HEADS)]
    return [torch.randn(shape).to(dtype).transpose(0, 1) for shape in shapes]


def visible(window: int | None) -> Tensor:
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    distance = torch.arange(sum(LENGTHS))[:, None] - torch.arange(sum(LENGTHS))[None, :]
    near = distance < (window or sum(LENGTHS))
    return (document[:, None] == document[None, :]) & (distance >= 0) & near


def through(attention: object, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The output and the gradients of query, key and value."""
    query, key, value = (tensor.detach().requires_grad_() for tensor in inputs[:3])
    output: Tensor = attention(query, key, value)  # type: ignore[operator]
    return output.detach(), *torch.autograd.grad(output, (query, key, value), inputs[3])


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("window", [None, 5, 8, 11, 30])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("pictures", [(), ((3, 14), (41, 60))], ids=["text", "pictures"])
def test_equals_sdpa_forward_and_backward(
    window: int | None, kv_heads: int, pictures: tuple[tuple[int, int], ...]
) -> None:
    inputs, mask = drawn(kv_heads), visible(window)
    reach = torch.arange(1, sum(LENGTHS) + 1) if pictures else None
    for begin, end in pictures:
        mask[begin:end, begin:end] |= torch.ones(end - begin, end - begin, dtype=torch.bool).triu()
        assert reach is not None
        reach[begin:end] = end

    def expected(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = (query[None], key[None], value[None])
        return functional.scaled_dot_product_attention(*rows, attn_mask=mask, scale=SCALE, enable_gqa=True)[0]

    ours = through(lambda q, k, v: block_attention(q, k, v, LENGTHS, SCALE, window, reach), inputs)
    for found, wanted in zip(ours, through(expected, inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.usefixtures("_small_blocks")
def test_bf16_departs_from_exact_sums_by_its_own_rounding_only() -> None:
    inputs = drawn(1, torch.bfloat16)
    exact = through(lambda q, k, v: block_attention(q, k, v, LENGTHS, SCALE, 11), [tensor.float() for tensor in inputs])
    for found, wanted in zip(
        through(lambda q, k, v: block_attention(q, k, v, LENGTHS, SCALE, 11), inputs), exact, strict=True
    ):
        assert found.dtype == torch.bfloat16
        assert (found.float() - wanted).norm() < 0.01 * wanted.norm()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.project(x)
        return block_attention(rows, rows, rows, LENGTHS, SCALE, None)


@pytest.mark.parametrize(("mode", "times"), [("off", 1), ("selective", 1), ("full", 2)])
def test_selective_recomputation_keeps_the_result(monkeypatch: pytest.MonkeyPatch, mode: str, times: int) -> None:
    passes = 0

    def count(*parts: Any) -> Any:
        nonlocal passes
        passes += 1
        return real(*parts)

    real = blocks.blocks_of
    monkeypatch.setattr(blocks, "blocks_of", count)
    layers = nn.ModuleList([Layer()])
    checkpoint_layers(layers, mode)  # type: ignore[arg-type]
    layers[0](torch.randn(HEADS, sum(LENGTHS), WIDTH, requires_grad=True)).sum().backward()
    # The operator's own backward goes through the blocks once more.
    assert passes == times + 1
