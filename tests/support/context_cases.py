"""One step of a tiny Gemma 3 whose ranks share their passes, called on every rank of a `RankPool`, and on one alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from gemfleet.benchmarks.shared.random_base import random_model
from gemfleet.train.batch_finder.probes.probe import worst_rows
from gemfleet.train.config.sections.recipe import OptimConfig
from gemfleet.train.context.group import make_group
from gemfleet.train.data.packing import TokenBlock, pack_steps
from gemfleet.train.device.abilities import prepare_process
from gemfleet.train.device.memory import forget_resident_peak, peak_resident_bytes, resident_bytes
from gemfleet.train.kernels.capabilities import Choices
from gemfleet.train.model import gemma
from gemfleet.train.model.gemma import TrainableModel, attach_lora, prepare_layers
from gemfleet.train.planning import SIZES
from gemfleet.train.step.throughput import flop_counter
from gemfleet.train.strategies.ddp import DdpStrategy
from numpy.typing import NDArray
from support.reference_step import LORA, VOCABULARY, fill_adapters
from support.tiny_model import tiny_gemma3


@dataclass(frozen=True)
class ContextCase:
    """What a step computes and how. lengths: of its documents; only_last: whether only their last tokens are scored

    compiled: whether layers are; then nothing may be compiled after the first pass
    """

    lengths: tuple[int, ...]
    window: int = 8
    max_length: int = 128
    micro: int = 2
    kernel: str = "sdpa"
    recompute: str = "off"
    only_last: bool = False
    compiled: bool = False

    def examples(self) -> TokenBlock:
        rng, ends = np.random.default_rng(3), np.cumsum(self.lengths)
        supervised = np.zeros(ends[-1], np.bool_) if self.only_last else rng.random(ends[-1]) > 0.5
        supervised[ends - 1] = True
        supervised[ends - self.lengths] = False
        tokens = rng.integers(3, VOCABULARY, ends[-1]).astype(np.int32)
        return TokenBlock(tokens, supervised, np.concatenate([[0], ends]))

    def model(self) -> TrainableModel:
        model = attach_lora(tiny_gemma3(window=self.window).requires_grad_(False), LORA, 0, "tiny")
        fill_adapters(model.peft_model)
        return model


@dataclass(frozen=True)
class StepOutcome:
    """Of the whole step, on one rank: the mean loss, all gradients, the mean loss without gradients.

    wire: bytes that this rank sent to others in exchanges of the training pass; tokens: that it computed
    """

    loss: float
    gradients: dict[str, NDArray[np.float32]]
    evaluation: float
    wire: int
    tokens: int


def context_step(case: ContextCase, context: int) -> StepOutcome:
    """The step in groups of `context` ranks. Collective, unless `context` is 1 and there is no process group."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    model, strategy = case.model(), DdpStrategy(OptimConfig())
    cost = flop_counter(model, "off").cost()
    strategy.setup(model)
    model = dataclasses.replace(model, context=make_group(context, cost))
    prepare_layers(model, Choices("sdpa", "torch", case.compiled and context > 1, case.recompute))  # type: ignore[arg-type]
    step = pack_steps([case.examples()], world // context, case.max_length).step(0, rank // context)
    total = evaluated = wire = tokens = 0.0
    with mock.patch.object(gemma, "attention_kernel", return_value=case.kernel):
        for number, part in enumerate(step.rows.micro_batches(case.micro)):
            with torch._dynamo.config.patch(error_on_recompile=number > 0):
                with counted_wire() as sent:
                    loss = model.loss_sum(part) / step.step_supervised_tokens
                    strategy.backward(loss)
                with torch.no_grad():
                    evaluated += float(model.loss_sum(part)) / step.step_supervised_tokens
            total, wire = total + float(loss.detach()), wire + sent[0]
            tokens += model.computed_tokens(part)
    strategy.reduce_gradients()
    mean_loss, evaluation = strategy.sum_over_ranks([total, evaluated])
    gradients = {name: p.grad.numpy() for name, p in model.adapter_parameters().items() if p.grad is not None}
    return StepOutcome(mean_loss, gradients, evaluation, int(wire), int(tokens))


@contextmanager
def counted_wire() -> Iterator[list[int]]:
    """One number: the bytes that this rank gives to exchanges while the block runs."""
    sent, real = [0], dist.all_to_all_single

    def counting(output: torch.Tensor, given: torch.Tensor, *sizes: Any, **named: Any) -> Any:
        sent[0] += given.numel() * given.element_size()
        return real(output, given, *sizes, **named)

    with mock.patch.object(dist, "all_to_all_single", counting):
        yield sent


def pass_bytes(tokens: int, context: int) -> int:
    """Bytes by which this rank's resident set grows at most in a pass over one document, forward and backward.

    Six layers of the 270M in bf16, with a small vocabulary, so that nearly all of it are activations. Collective.
    """
    prepare_process(ranks_on_node=context)
    torch.set_num_threads(1)
    shape = dataclasses.replace(SIZES["270m"], layers=6, sliding_layers=5, vocabulary=4096)
    model = random_model(shape, torch.bfloat16)
    model = dataclasses.replace(model, context=make_group(context, flop_counter(model, "off").cost()))
    model.loss_sum(worst_rows(1, 512, shape.vocabulary)).backward()  # what is made once is there
    before = resident_bytes()
    forget_resident_peak()
    model.loss_sum(worst_rows(1, tokens, shape.vocabulary)).backward()
    return peak_resident_bytes() - before
