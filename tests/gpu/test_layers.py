"""Layers recomputed or compiled against plain ones: the same loss and gradients, and one compilation for all passes.

Judged against the plain layers in fp32; in bf16 a variant may be twice as far from them as plain bf16 layers are.
"""

from __future__ import annotations

from typing import Any

import torch
from gemfleet.train.kernels.capabilities import abilities_of
from support.gpu_proof.findings import apart, bf16_bound, ratio
from support.gpu_proof.stage import Stage, gradients
from torch._dynamo.utils import counters

FP32_LOSS, FP32_GRADIENTS, BF16_LOSS = 1e-5, 1e-3, 1e-2
SEEDS = (0, 1, 2)  # passes whose documents differ
VARIANTS: dict[str, dict[str, Any]] = {
    "selective": {"activation_checkpointing": "selective"},
    "full": {"activation_checkpointing": "full"},
    "compiled": {"compile": True},
    "compiled, selective": {"compile": True, "activation_checkpointing": "selective"},
    "compiled, full": {"compile": True, "activation_checkpointing": "full"},
}


def test_layers(stage: Stage) -> None:
    rows = [stage.rows(seed) for seed in SEEDS]
    exact = [gradients(model, part) for model in [stage.model(stage.config())] for part in rows]
    for precision in ("bf16", "fp32"):
        plain = [gradients(model, part) for model in [stage.model(stage.config(precision=precision))] for part in rows]
        for name, changes in VARIANTS.items():
            if "compile" in changes and not (stage.on_cuda and abilities_of(stage.device).compiler):
                stage.skip(f"{precision}, {name}", "this is no GPU, or torch finds no compiler")
                continue
            if precision == "fp32" and changes.keys() == {"compile", "activation_checkpointing"}:
                continue  # each variant takes long to compile; bf16 has them all
            model = stage.model(stage.config(precision=precision, **changes))
            torch._dynamo.reset()
            gradients(model, rows[0])  # the first pass compiles
            before = graphs()
            found = [gradients(model, part) for part in rows]
            if "compile" in changes:
                stage.holds(
                    f"{precision}, {name}: compiled once", graphs() == before, f"{graphs() - before} times more"
                )
            loss = max(ratio(ours[0], right[0]) for ours, right in zip(found, exact, strict=True))
            stage.at_most(f"{precision}, {name}: loss", loss, FP32_LOSS if precision == "fp32" else BF16_LOSS)
            ours, peer, right = found[-1][1], plain[-1][1], exact[-1][1]
            bound = FP32_GRADIENTS if precision == "fp32" else bf16_bound(peer, right)
            stage.at_most(f"{precision}, {name}: gradients", apart(ours, right), bound)


def graphs() -> int:
    """How many torch has compiled in this process."""
    return int(counters["stats"]["unique_graphs"])
