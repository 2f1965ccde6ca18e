"""Documents in a packed row cannot see each other, at lengths beyond the sliding window too."""

from __future__ import annotations

import inspect
from typing import Any, cast

import numpy as np
import pytest
import torch
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.kernels.attention import packed as attention
from gemfleet.train.kernels.attention.packed import Packing, packed_attention
from gemfleet.train.kernels.capabilities import AttentionKernel
from gemfleet.train.model.gemma import TrainableModel
from support.reference_step import trainable
from support.tiny_model import WINDOW
from torch import nn
from torch.nn.attention import varlen

DOCUMENTS = (3 * WINDOW + 1, 5, 2 * WINDOW)


def document_losses(model: TrainableModel, tokens: np.ndarray) -> list[float]:
    """The summed loss of each document of one packed row, each supervised in turn."""
    ends = np.cumsum(DOCUMENTS)
    losses = []
    for start, end in zip(ends - DOCUMENTS, ends, strict=True):
        supervised = np.zeros(len(tokens), dtype=bool)
        supervised[start + 1 : end] = True
        rows = PackedRows(tokens, supervised, np.array(DOCUMENTS, np.int32), np.array([len(DOCUMENTS)], np.int32))
        losses.append(float(model.loss_sum(rows).detach()))
    return losses


@pytest.mark.parametrize("changed", range(len(DOCUMENTS)))
def test_changing_one_document_changes_no_other(changed: int) -> None:
    model, rng = trainable(), np.random.default_rng(0)
    tokens = rng.integers(3, 512, sum(DOCUMENTS)).astype(np.int32)
    before = document_losses(model, tokens)
    start = sum(DOCUMENTS[:changed])
    tokens[start : start + DOCUMENTS[changed]] = rng.integers(3, 512, DOCUMENTS[changed])
    after = document_losses(model, tokens)
    for document, (old, new) in enumerate(zip(before, after, strict=True)):
        assert (old == new) == (document != changed)


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("kernel", ["sdpa", "flex", "blocks"])
@pytest.mark.parametrize("begin", [0, 3, WINDOW - 1, 2 * WINDOW, DOCUMENTS[0] - 1])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_equals_masked_attention_written_out(
    window: int | None, kv_heads: int, kernel: AttentionKernel, begin: int
) -> None:
    """begin: the first query, as in a share of the pass. Its queries see the keys of earlier shares."""
    torch.manual_seed(0)
    length = sum(DOCUMENTS)
    query = torch.randn(1, 4, length, 16)
    key, value = torch.randn(2, 1, kv_heads, length, 16)
    lengths = (DOCUMENTS[0] - begin, *DOCUMENTS[1:])
    packing = Packing(lengths, torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32), kernel)
    packing.shared = cast(Any, AllKeys(key, value, begin))
    ours, _ = packed_attention(
        nn.Identity(), query[:, :, begin:], key, value, None, packing=packing, scaling=0.25, sliding_window=window
    )
    document = torch.repeat_interleave(torch.arange(len(DOCUMENTS)), torch.tensor(DOCUMENTS))
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    visible = (document[:, None] == document[None, :]) & (distance >= 0)
    if window is not None:
        visible &= distance < window
    scores = (query @ key.repeat_interleave(4 // kv_heads, 1).transpose(2, 3) * 0.25).masked_fill(~visible, -torch.inf)
    expected = scores.softmax(-1) @ value.repeat_interleave(4 // kv_heads, 1)
    torch.testing.assert_close(ours, expected[:, :, begin:].transpose(1, 2), rtol=1e-5, atol=1e-6)


class AllKeys:
    """Stands for the exchange of a context group: it has the keys and values of the whole pass."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor, begin: int) -> None:
        self._both, self._begin = (key, value), begin

    def with_earlier(self, _key: torch.Tensor, _value: torch.Tensor, window: int | None) -> tuple[torch.Tensor, ...]:
        first = 0 if window is None else max(0, self._begin - window + 1)
        return tuple(tensor[:, :, first:] for tensor in self._both)


@pytest.mark.parametrize("older", [False, True])
def test_torchs_kernel_is_called_as_its_signature_says(monkeypatch: pytest.MonkeyPatch, older: bool) -> None:
    """The kernel itself needs a GPU; its signature does not. torch 2.11 has no `enable_gqa`."""
    signature = inspect.signature(varlen.varlen_attn)
    older = older or "enable_gqa" not in signature.parameters
    if older:
        kept = [parameter for name, parameter in signature.parameters.items() if name != "enable_gqa"]
        signature = signature.replace(parameters=kept)
    calls: list[inspect.BoundArguments] = []

    def kernel(*values: Any, **named: Any) -> torch.Tensor:
        calls.append(signature.bind(*values, **named))
        return torch.zeros_like(values[0])

    cast(Any, kernel).__signature__ = signature
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_varlen_keywords", attention._varlen_keywords.__wrapped__)
    packing = Packing((3, 5), torch.tensor([0, 3, 8], dtype=torch.int32), "varlen")
    query, key = torch.zeros(1, 4, 8, 16), torch.zeros(1, 2, 8, 16)
    packed_attention(nn.Module(), query, key, key, None, packing=packing, scaling=0.25, sliding_window=4)
    (call,) = calls
    assert call.arguments["window_size"] == (3, 0)  # the kernel does not count the query itself
    assert (call.arguments["max_q"], call.arguments["max_k"]) == (5, 5)
    assert call.arguments.get("enable_gqa") == (None if older else True)
    packing.shared = cast(Any, AllKeys(torch.zeros(1, 2, 10, 16), torch.zeros(1, 2, 10, 16), 2))
    packed_attention(nn.Module(), query, key, key, None, packing=packing, scaling=0.25, sliding_window=4)
    assert calls[-1].arguments["cu_seq_q"].tolist() == [0, 3, 8]
    assert calls[-1].arguments["cu_seq_k"].tolist() == [0, 5, 10]
    assert (calls[-1].arguments["max_q"], calls[-1].arguments["max_k"]) == (5, 7)
