"""A step on this device equals the CPU's: loss, gradients, gradient norm and the adapters after it, in fp32 and bf16.

In fp32 the bounds are those of rounding. bf16 is judged against the CPU's fp32: it may be twice as far from it as the
CPU's own bf16. AdamW's first steps go by the sign of a gradient, so the adapters' bound is wider than the gradients'.
"""

from __future__ import annotations

from support.gpu_proof.findings import apart, bf16_bound, ratio
from support.gpu_proof.runs import train
from support.gpu_proof.stage import CPU, Stage, gradients

STEPS = 2
FP32_LOSS, FP32_NORM, FP32_GRADIENT, FP32_UPDATE = 1e-5, 1e-4, 1e-3, 2e-2
BF16_SHARE, BF16_FLOOR = 2.0, 1e-3


def test_step(stage: Stage) -> None:
    configs = {precision: stage.config(precision=precision, max_steps=STEPS) for precision in ("fp32", "bf16")}
    rows = stage.rows()
    exact_loss, exact = gradients(stage.model(configs["fp32"], CPU), rows)
    loss, found = gradients(stage.model(configs["fp32"]), rows)
    stage.at_most("fp32 loss", ratio(loss, exact_loss), FP32_LOSS)
    stage.at_most("fp32 gradients", apart(found, exact), FP32_GRADIENT)
    peer_loss, peer = gradients(stage.model(configs["bf16"], CPU), rows)
    loss, found = gradients(stage.model(configs["bf16"]), rows)
    stage.at_most("bf16 loss", ratio(loss, exact_loss), BF16_SHARE * ratio(peer_loss, exact_loss) + BF16_FLOOR)
    stage.at_most("bf16 gradients", apart(found, exact), bf16_bound(peer, exact))

    cpu, ours = (train(stage, configs["fp32"], f"step-{n}", facts) for n, facts in (("cpu", CPU), ("ours", None)))
    stage.at_most("fp32 gradient norm", ratio(ours.norms[0], cpu.norms[0]), FP32_NORM)
    stage.at_most("fp32 adapters after two steps", apart(ours.update, cpu.update), FP32_UPDATE)
    peer_run = train(stage, configs["bf16"], "step-cpu-bf16", CPU)
    bf16 = train(stage, configs["bf16"], "step-ours-bf16")
    allowed = BF16_SHARE * ratio(peer_run.norms[0], cpu.norms[0]) + 1e-2
    stage.at_most("bf16 gradient norm", ratio(bf16.norms[0], cpu.norms[0]), allowed)
    bound = bf16_bound(peer_run.update, cpu.update)
    stage.at_most("bf16 adapters after two steps", apart(bf16.update, cpu.update), bound)
