"""Packed attention against SDPA for each document: output and gradients, windows, grouped queries, single tokens.

The kernel computes in bf16 and is judged against SDPA in fp32 on the same inputs. bf16 rounds by up to 0.4%, and each
of the four results stays within 1% of its norm; a token too many or too few in a window is far beyond that.
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import torch
from gemfleet.train.kernels.attention.packed import Packing, packed_attention
from gemfleet.train.kernels.attention.reach import reach_of
from gemfleet.train.kernels.capabilities import AttentionKernel, abilities_of
from support.gpu_proof.findings import apart
from support.gpu_proof.stage import Stage
from torch import Tensor, nn

HEADS = ((8, 4), (4, 1), (4, 4))  # of queries, and of keys
BF16 = 1e-2
NAMES = ("output", "query", "key", "value")


def test_attention(stage: Stage) -> None:
    sizes = (32,) if stage.quick else (128, 256)
    for kernel in kernels(stage):
        for head_dim in sizes:
            for heads in HEADS:
                for window in (None, stage.shape.window, 16):
                    # Flex attention is compiled anew for each shape, which takes long: two of them.
                    if kernel != "flex" or (heads == HEADS[0] and head_dim == sizes[-1] and window != 16):
                        for pictures in (False, True) if kernel in ("flex", "blocks") else (False,):
                            _compare(stage, kernel, head_dim, heads, window, pictures)


def kernels(stage: Stage) -> tuple[AttentionKernel, ...]:
    """Those that are in use on this device, and flex attention, which stands in where torch has no such kernel."""
    if not stage.on_cuda:
        return ("blocks",)
    able = abilities_of(stage.device)
    modern = able.capability is not None and able.capability >= (8, 0)
    usable = {"varlen": modern and able.varlen, "flex": modern and able.triton and able.compiler}
    for kernel in ("varlen", "flex"):
        if not usable[kernel]:
            stage.skip(kernel, "this device or installation has no such kernel")
    return tuple(kernel for kernel in get_args(AttentionKernel) if usable.get(kernel))


def _compare(
    stage: Stage, kernel: AttentionKernel, head_dim: int, heads: tuple[int, int], window: int | None, pictures: bool
) -> None:
    queries, keys = heads
    generator = torch.Generator(stage.device).manual_seed(0)
    tokens = sum(stage.documents)
    narrow = tuple(
        torch.randn((1, count, tokens, head_dim), generator=generator, device=stage.device).bfloat16()
        for count in (queries, keys, keys)
    )
    reach = reach_of_a_picture_in_each(stage) if pictures else None
    exact = attention(stage, "sdpa", tuple(tensor.float() for tensor in narrow), window, reach)
    seen = "no window" if window is None else f"window {window}"
    name = f"{kernel}, heads of {head_dim}, {queries} over {keys}, {seen}{', pictures' if pictures else ''}"
    stage.at_most(name, apart(attention(stage, kernel, narrow, window, reach), exact), BF16)


def reach_of_a_picture_in_each(stage: Stage) -> Tensor:
    """The reach of documents that have a picture of up to 256 tokens after their first token."""
    within = np.concatenate([np.arange(length) for length in stage.documents])
    soft = (within > 0) & (within <= 256)
    return torch.from_numpy(reach_of(soft, np.array(stage.documents, np.int32))).to(stage.device)


def attention(
    stage: Stage,
    kernel: AttentionKernel,
    inputs: tuple[Tensor, ...],
    window: int | None,
    reach: Tensor | None = None,
) -> dict[str, Tensor]:
    """The output and the gradients of the three inputs, by `NAMES`."""
    query, key, value = (tensor.detach().requires_grad_() for tensor in inputs)
    ends = torch.tensor([0, *torch.tensor(stage.documents).cumsum(0)], dtype=torch.int32, device=stage.device)
    options: dict[str, Any] = {"scaling": query.shape[-1] ** -0.5, "sliding_window": window}
    packing = Packing(stage.documents, ends, kernel, reach=reach)
    output, _ = packed_attention(nn.Identity(), query, key, value, None, packing=packing, **options)
    weights = torch.randn(output.shape, generator=torch.Generator(stage.device).manual_seed(1), device=stage.device)
    (output.float() * weights).sum().backward()
    found = (output.detach(), *(tensor.grad for tensor in (query, key, value)))
    return {name: tensor for name, tensor in zip(NAMES, found, strict=True) if tensor is not None}
