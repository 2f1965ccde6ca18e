"""A run that goes on from its checkpoint equals one that was never interrupted.

Kernels whose sums have no fixed order make two runs differ; two uninterrupted runs say how much, and the resumed one
may differ three times as much. What is restored, and the first loss after it, have to be equal.
"""

from __future__ import annotations

from gemfleet.train.kernels.capabilities import abilities_of
from support.gpu_proof.findings import apart, ratio
from support.gpu_proof.runs import SAVED, STEPS, resumed, saved_state, train
from support.gpu_proof.stage import Stage

FIRST_LOSS = 1e-6
NOISE_SHARE, NOISE_FLOOR = 3.0, 1e-4


def test_resume(stage: Stage) -> None:
    for precision, compiled in (("fp32", False), *((("bf16", False), ("bf16", True)) if stage.on_cuda else ())):
        if compiled and not abilities_of(stage.device).compiler:
            stage.skip("compiled layers", "torch finds no compiler")
            continue
        name = f"{precision}{', compiled' if compiled else ''}"
        config = stage.config(precision=precision, compile=compiled, lora={"r": 8, "alpha": 16.0, "dropout": 0.1})
        whole, again = (train(stage, config, f"resume-{name}-{n}") for n in ("whole", "again"))
        rest = resumed(stage, config, whole, f"resume-{name}-rest")
        stage.holds(f"{name}: steps taken after it", len(rest.losses) == STEPS - SAVED, f"{len(rest.losses)}")
        at_checkpoint = saved_state(whole)
        stage.at_most(f"{name}: restored adapters", apart(rest.began[0], at_checkpoint[0]), 0.0)
        stage.at_most(f"{name}: restored optimizer", apart(rest.began[1], at_checkpoint[1]), 0.0)
        stage.at_most(f"{name}: first loss", ratio(rest.losses[0], whole.losses[SAVED]), FIRST_LOSS)
        noise = NOISE_SHARE * apart(again.update, whole.update) + NOISE_FLOOR
        stage.at_most(f"{name}: adapters at the end", apart(rest.update, whole.update), noise)
