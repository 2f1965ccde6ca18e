"""Memory that runs out ends a pass with the message and the remedy that are documented, and less of it trains on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from gemfleet.train.batch_finder.probes.probe import worst_rows
from gemfleet.train.device.out_of_memory import EVALUATION, TRAINING, OutOfMemoryError, told_out_of_memory
from support.gpu_proof.stage import Stage

FEW, MANY = 4, 512  # rows that fit, and that do not


def test_memory(stage: Stage) -> None:
    if not stage.on_cuda:
        stage.skip("out of memory", "this is no GPU")
        return
    model = stage.model(stage.config(precision="bf16"))
    rows = {micro: worst_rows(micro, 512, stage.shape.vocabulary) for micro in (FEW, MANY)}

    def backward(micro: int) -> None:
        model.loss_sum(rows[micro]).backward()

    @torch.no_grad()
    def score(micro: int) -> None:
        model.loss_sum(rows[micro])

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(stage.device)
    backward(FEW)
    ceiling = 2 * torch.cuda.max_memory_reserved(stage.device)
    torch.cuda.empty_cache()
    with limited(stage.device, ceiling):
        _runs_out(stage, "a training pass", TRAINING, lambda: backward(MANY))
        _runs_out(stage, "an evaluation", EVALUATION, lambda: score(MANY))
        model.peft_model.zero_grad()
        torch.cuda.empty_cache()
        backward(FEW)
        graded = all(parameter.grad is not None for parameter in model.adapter_parameters().values())
        stage.holds("fewer rows train on afterwards", graded)


@contextmanager
def limited(device: torch.device, allowed: int) -> Iterator[None]:
    """Let this process have no more than so many bytes."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _runs_out(stage: Stage, name: str, field: str, work: Callable[[], None]) -> None:
    try:
        with told_out_of_memory(MANY, field):
            work()
    except OutOfMemoryError as error:
        expected = (f"{MANY} rows in a pass", f"lower {field}, for instance to {MANY // 2}")
        missing = [phrase for phrase in expected if phrase not in str(error)]
        stage.holds(f"{name} says so and what to lower", not missing, f"it says: {error}")
    else:
        stage.holds(f"{name} runs out of memory", False, f"{MANY} rows fitted")
