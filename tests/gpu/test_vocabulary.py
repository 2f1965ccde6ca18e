"""The chunked loss over the whole vocabulary of 262,144 words against torch's own.

The reference is fp32 on the same device. bf16 may be twice as far from it as torch's cross-entropy of bf16 logits is.
"""

from __future__ import annotations

import torch
from gemfleet.train.kernels.loss import SupervisedCrossEntropy
from support.gpu_proof.findings import apart, bf16_bound
from support.gpu_proof.stage import Stage
from torch import Tensor
from torch.nn import functional

WORDS, HIDDEN = 262_144, 640
SOFTCAP = 30.0
PIECE = 500  # positions; not a divisor of the chunks that are under proof
FP32 = 1e-5


def test_vocabulary(stage: Stage) -> None:
    words, positions = (512, 300) if stage.quick else (WORDS, 2 * 2048 + 77)  # two whole chunks of a GPU, and a rest
    generator = torch.Generator(stage.device).manual_seed(2)
    hidden = torch.randn(positions, HIDDEN, generator=generator, device=stage.device)
    head = torch.randn(words, HIDDEN, generator=generator, device=stage.device) * 0.05
    targets = torch.randint(words, (positions,), generator=generator, device=stage.device)
    for softcap in (None, SOFTCAP):
        name = f"{words:,} words{'' if softcap is None else ', capped'}"
        exact = reference(hidden, head, targets, softcap)
        stage.at_most(f"{name}, fp32", apart(chunked(hidden, head, targets, softcap), exact), FP32)
        narrow = hidden.bfloat16(), head.bfloat16()
        exact = reference(narrow[0].float(), narrow[1].float(), targets, softcap)
        ours, peer = chunked(*narrow, targets, softcap), reference(*narrow, targets, softcap)
        stage.at_most(f"{name}, bf16", apart(ours, exact), bf16_bound(peer, exact))


def chunked(hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None) -> dict[str, Tensor]:
    """Loss and gradient as training computes them."""
    inputs = hidden.detach().requires_grad_()
    loss = SupervisedCrossEntropy(head, softcap)(inputs, targets)
    loss.backward()
    assert inputs.grad is not None
    return {"loss": loss.detach(), "gradient": inputs.grad}


def reference(hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None) -> dict[str, Tensor]:
    """torch's cross-entropy of as many logits at once as fit beside the rest."""
    inputs = hidden.detach().requires_grad_()
    total = torch.zeros((), device=hidden.device)
    for part, wanted in zip(inputs.split(PIECE), targets.split(PIECE), strict=True):
        logits = part @ head.T
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        loss = functional.cross_entropy(logits, wanted, reduction="sum")
        loss.backward()
        total += loss.detach()
    assert inputs.grad is not None
    return {"loss": total, "gradient": inputs.grad}
