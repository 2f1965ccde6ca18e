"""One step of a tiny Gemma 3 whose ranks share their passes, called on every rank of a `RankPool`, and on one alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from gemfleet.benchmarks.shared.random_base import random_model
from gemfleet.train.batch_finder.probes.probe import worst_rows
from gemfleet.train.context.group import make_group
from gemfleet.train.data.packing import TokenBlock, pack_steps
from gemfleet.train.device.abilities import prepare_process
from gemfleet.train.device.memory import forget_resident_peak, peak_resident_bytes, resident_bytes
from gemfleet.train.interfaces import EMPTY_PASS
from gemfleet.train.kernels.capabilities import Choices
from gemfleet.train.model import gemma
from gemfleet.train.model.gemma import TrainableModel, attach_lora, prepare_layers
from gemfleet.train.planning import SIZES
from gemfleet.train.step.throughput import flop_counter
from gemfleet.train.strategies import build_strategy
from gemfleet.train.strategies.base import Strategy
from numpy.typing import NDArray
from support.reference_step import LORA, VOCABULARY, fill_adapters
from support.strategy_cases import STRATEGIES, strategy_config
from torch.distributed.tensor import DTensor


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

    def model(self, strategy: Strategy, folder: str) -> TrainableModel:
        """The model, as the strategy loads it. folder: of the base with this window"""
        base = strategy.load_base(Path(folder), torch.float32, torch.device("cpu"))
        model = attach_lora(base, LORA, 0, "tiny")
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


def context_step(case: ContextCase, context: int, folder: str, name: str = "ddp") -> StepOutcome:
    """The step in groups of `context` ranks. Collective, unless `context` is 1 and there is no process group.

    name: of the strategy, see `STRATEGIES`
    """
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    strategy = build_strategy(strategy_config(**STRATEGIES[name]))
    model = case.model(strategy, folder)
    cost = flop_counter(model, "off").cost()
    model = dataclasses.replace(model, context=make_group(context, cost))
    prepare_layers(model, Choices("sdpa", "torch", case.compiled and context > 1, case.recompute))  # type: ignore[arg-type]
    parameters, model = model.adapter_parameters(), strategy.setup(model)
    step = pack_steps([case.examples()], world // context, case.max_length).step(0, rank // context)
    parts = list(step.rows.micro_batches(case.micro))
    loss, evaluated, wire, tokens = torch.zeros(()), torch.zeros(()), 0, 0
    with mock.patch.object(gemma, "attention_kernel", return_value=case.kernel):
        for number, part in enumerate(parts + [EMPTY_PASS] * (strategy.passes(len(parts)) - len(parts))):
            with torch._dynamo.config.patch(error_on_recompile=number > 0), counted_wire() as sent:
                share = model.loss_sum(part) / step.step_supervised_tokens
                strategy.backward(share)
            loss, wire, tokens = loss + share.detach(), wire + sent[0], tokens + model.computed_tokens(part)
        strategy.reduce_gradients()
        gradients = {name: gradient.numpy() for name, gradient in whole_gradients(strategy, parameters).items()}
        for number, part in enumerate(parts + [EMPTY_PASS] * (strategy.passes(len(parts)) - len(parts))):
            with torch._dynamo.config.patch(error_on_recompile=number > 0), torch.no_grad():
                evaluated = evaluated + model.loss_sum(part) / step.step_supervised_tokens
    mean_loss, evaluation = strategy.sum_over_ranks([float(loss), float(evaluated)])
    return StepOutcome(mean_loss, gradients, evaluation, wire, tokens)


def whole_gradients(strategy: Strategy, parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """The reduced gradients, whole on every rank. parameters: by name, as they were before `setup`. Collective."""
    if strategy.name == "deepspeed":
        from deepspeed.utils import safe_get_full_grad

        return {name: safe_get_full_grad(parameter) for name, parameter in parameters.items()}
    held: Any = strategy
    found = {name: parameter.grad for name, parameter in held._parameters.items()}
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in found.items()}


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
