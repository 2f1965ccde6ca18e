"""Tokens per second that a GPU can reach, and how many are left after recomputation and communication.

The ceiling is arithmetic: the device's matrix rate, divided by LoRA's FLOPs per token. The expectation is an assumed
share of it, which small kernels, norms and attention leave. No figure is measured with several GPUs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import context
from .counts import body_linear, embedding, lora_parameters
from .devices import Device
from .flops import visible_pairs
from .memory import MIB, weight_bytes
from .options import Fleet, Sharing, Workload
from .shapes import ModelShape

# Shares of the ceiling by the decoder's size. They are this project's targets, not measurements.
EXPECTED_SHARES = ((3 * 10**9, 0.65), (5 * 10**8, 0.50), (0, 0.35))
LATENCY_SECONDS = 50e-6  # that one collective takes at least
FP32 = 4
BUCKET = 64 * MIB


@dataclass(frozen=True)
class Speed:
    """The speed of one rank, in non-pad tokens per second. Seconds are those of one optimizer step.

    ceiling:  only LoRA's FLOPs, at the rate that matrix products reach
    expected: with recomputation, communication that the step waits for, and waits for the ranks with the last pass
    mfu:      expected model FLOPs, divided by the peak of the device's data sheet
    """

    flops_per_token: float
    ceiling: float
    expected: float
    share_of_ceiling: float
    mfu: float
    passes: int
    step_seconds: float
    compute_seconds: float
    communication_seconds: float


def mean_context(document: int, window: int | None) -> float:
    """The mean number of tokens that a token sees, itself included, in a document under a causal window."""
    return visible_pairs(document, window) / document


def attention_flops(shape: ModelShape, document: int) -> float:
    """A in the formula below: forward FLOPs per token of scores and sums in all layers."""
    full = shape.layers - shape.sliding_layers
    context = shape.sliding_layers * mean_context(document, shape.window) + full * mean_context(document, None)
    return 4 * shape.queries * context


def lora_flops_per_token(shape: ModelShape, work: Workload) -> float:
    """4 N_body + 4 E s + 6 N_lora + 3 A. Frozen weights get no gradient; the head runs only at scored positions."""
    return (
        4 * body_linear(shape)
        + 4 * embedding(shape) * work.supervised
        + 6 * lora_parameters(shape, work.lora_rank, work.lora_targets)
        + 3 * attention_flops(shape, work.document)
    )


def recomputed_flops_per_token(shape: ModelShape, work: Workload, sharing: Sharing) -> float:
    """FLOPs that activation checkpointing adds: `full` runs the layers again; `selective` repeats no matrix product."""
    if sharing.checkpointing != "full":
        return 0.0
    adapters = 2 * lora_parameters(shape, work.lora_rank, work.lora_targets)
    return 2 * body_linear(shape) + adapters + attention_flops(shape, work.document)


def expected_share(shape: ModelShape) -> float:
    """The share of the ceiling that is assumed for a decoder of this size."""
    return next(share for parameters, share in EXPECTED_SHARES if body_linear(shape) >= parameters)


def expected_speed(shape: ModelShape, work: Workload, sharing: Sharing, device: Device, fleet: Fleet) -> Speed:
    """The expectation for each rank of a fleet. The device must have a rate; a CPU has none."""
    flops = lora_flops_per_token(shape, work)
    rate = device.reached_tflops * 1e12
    extra = recomputed_flops_per_token(shape, work, sharing)
    rows = math.ceil(work.step_tokens / work.length)
    of_group = math.ceil(rows * sharing.context / fleet.ranks)
    passes = math.ceil(of_group / work.micro)
    busiest = min(passes * work.tokens, of_group * work.length) / sharing.context
    compute = max(
        busiest * (flops + extra) / (rate * expected_share(shape)), passes * reading_seconds(shape, work, device)
    )
    communication = exposed_seconds(shape, work, sharing, device, fleet, passes, compute)
    tokens = work.step_tokens / fleet.ranks
    expected = tokens / (compute + communication)
    return Speed(
        flops_per_token=flops,
        ceiling=rate / flops,
        expected=expected,
        share_of_ceiling=expected * flops / rate,
        mfu=expected * flops / (device.tflops * 1e12),
        passes=passes,
        step_seconds=compute + communication,
        compute_seconds=compute,
        communication_seconds=communication,
    )


def reading_seconds(shape: ModelShape, work: Workload, device: Device) -> float:
    """The seconds that a pass takes at least, however short its rows: forward and backward each read all weights."""
    return 2 * weight_bytes(shape, work) / (device.bandwidth_gb_s * 1e9)


def link_bytes_per_second(device: Device, fleet: Fleet) -> float:
    """Bytes per second of a ring over all ranks: the link between a node's GPUs, or its network if that is slower."""
    link = device.link_gb_s * 1e9
    return link if fleet.ranks <= fleet.ranks_per_node else min(link, fleet.network_gbit_s * 1e9 / 8)


def exposed_seconds(
    shape: ModelShape,
    work: Workload,
    sharing: Sharing,
    device: Device,
    fleet: Fleet,
    passes: int,
    compute_seconds: float,
) -> float:
    """Seconds of communication that the step waits for.

    It waits for the adapters' gradients, which are reduced once, after the last backward, and in each layer
    for keys and values of earlier shares. Gathers of divided weights run beside the computation, and cost only the
    time that they take longer.
    """
    if fleet.ranks == 1:
        return 0.0
    waited = reduce_seconds(shape, work, device, fleet)
    waited += passes * exchange_seconds(shape, work, sharing, device, fleet)
    return waited + max(0.0, gather_seconds(shape, work, sharing, device, fleet, passes) - compute_seconds)


def reduce_seconds(shape: ModelShape, work: Workload, device: Device, fleet: Fleet) -> float:
    """Seconds of an all-reduce of the adapters' fp32 gradients. A reduce-scatter and a gather move as much."""
    size = lora_parameters(shape, work.lora_rank, work.lora_targets) * FP32
    moved = 2 * size * (fleet.ranks - 1) / fleet.ranks
    return moved / link_bytes_per_second(device, fleet) + math.ceil(size / BUCKET) * LATENCY_SECONDS


def exchange_seconds(shape: ModelShape, work: Workload, sharing: Sharing, device: Device, fleet: Fleet) -> float:
    """Seconds of the exchanges of a pass: the rank that gets most keys and values, over its link.

    A group over several nodes has its ranks of a node share the network.
    """
    if sharing.context == 1:
        return 0.0
    link = device.link_gb_s * 1e9
    if sharing.context > fleet.ranks_per_node:
        link = min(link, fleet.network_gbit_s * 1e9 / 8 / fleet.ranks_per_node)
    parts = context.shares(shape, work, sharing.context)
    most = max(context.received_bytes(shape, work, sharing, share) for share in parts)
    return most / link + shape.layers * context.times(sharing) * LATENCY_SECONDS


def gather_seconds(
    shape: ModelShape, work: Workload, sharing: Sharing, device: Device, fleet: Fleet, passes: int
) -> float:
    """Seconds of gathering all weights: twice a pass if they are freed after forward, once a step if they are kept."""
    if fleet.ranks == 1 or not sharing.divides_weights:
        return 0.0
    times = 2 * passes if sharing.name == "zero3" or sharing.reshard else 1
    moved = weight_bytes(shape, work) * (fleet.ranks - 1) / fleet.ranks
    return times * (moved / link_bytes_per_second(device, fleet) + shape.layers * LATENCY_SECONDS)
