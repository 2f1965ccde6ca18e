"""Tokens per second that a GPU could reach, and what is left of them after recomputation and communication.

The ceiling is arithmetic: the device's matrix rate over the FLOPs that LoRA needs a token. The expectation multiplies
it by an assumed share that small kernels, norms and attention leave. No figure was measured with several GPUs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .counts import body_linear, embedding, lora_parameters
from .devices import Device
from .flops import visible_pairs
from .memory import MIB, weight_bytes
from .options import Fleet, Sharing, Workload
from .shapes import ModelShape

# Shares of the ceiling that this project aims at, by the size of the decoder. Targets, not measurements.
EXPECTED_SHARES = ((3 * 10**9, 0.65), (5 * 10**8, 0.50), (0, 0.35))
LATENCY_SECONDS = 50e-6  # of one collective
FP32 = 4
BUCKET = 64 * MIB


@dataclass(frozen=True)
class Speed:
    """Of one rank, in non-pad tokens per second; seconds are of one optimizer step.

    ceiling:  nothing but the FLOPs of LoRA at the rate that matrix products reach
    expected: with recomputation, communication that nothing hides, and ranks that wait for the last pass of others
    mfu:      expected FLOPs over the device's peak on its data sheet, recomputation left out
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
    """Tokens that a token sees on average, itself included, in a document under a causal window."""
    return visible_pairs(document, window) / document


def attention_flops(shape: ModelShape, document: int) -> float:
    """A of the formula below: forward FLOPs of scores and sums over all layers, a token."""
    full = shape.layers - shape.sliding_layers
    context = shape.sliding_layers * mean_context(document, shape.window) + full * mean_context(document, None)
    return 4 * shape.queries * context


def lora_flops_per_token(shape: ModelShape, work: Workload) -> float:
    """4 N_body + 4 E s + 6 N_lora + 3 A: frozen weights get no gradient; the head runs at scored positions only."""
    return (
        4 * body_linear(shape)
        + 4 * embedding(shape) * work.supervised
        + 6 * lora_parameters(shape, work.lora_rank, work.lora_targets)
        + 3 * attention_flops(shape, work.document)
    )


def recomputed_flops_per_token(shape: ModelShape, work: Workload, sharing: Sharing) -> float:
    """What activation checkpointing adds: `full` runs the layers once more; `selective` repeats no matrix product."""
    if sharing.checkpointing != "full":
        return 0.0
    adapters = 2 * lora_parameters(shape, work.lora_rank, work.lora_targets)
    return 2 * body_linear(shape) + adapters + attention_flops(shape, work.document)


def expected_share(shape: ModelShape) -> float:
    """The share of the ceiling assumed for a decoder of this size."""
    return next(share for parameters, share in EXPECTED_SHARES if body_linear(shape) >= parameters)


def expected_speed(shape: ModelShape, work: Workload, sharing: Sharing, device: Device, fleet: Fleet) -> Speed:
    """The expectation for each rank of a fleet. The device must have a rate, which a CPU has not."""
    flops = lora_flops_per_token(shape, work)
    rate = device.reached_tflops * 1e12
    extra = recomputed_flops_per_token(shape, work, sharing)
    rows = math.ceil(work.step_tokens / work.length)
    passes = math.ceil(math.ceil(rows / fleet.ranks) / work.micro)
    busiest = min(passes * work.tokens, math.ceil(rows / fleet.ranks) * work.length)
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
    """The least that a pass takes, however short its rows: weights are read in forward and again in backward."""
    return 2 * weight_bytes(shape, work) / (device.bandwidth_gb_s * 1e9)


def link_bytes_per_second(device: Device, fleet: Fleet) -> float:
    """What a ring over all ranks carries: the link between GPUs of a node, or the node's network if slower."""
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
    """Communication that the step waits for.

    Adapters' gradients are reduced once, after the last backward: always waited for. Gathers of divided weights run
    beside the computation, and cost what they take longer than it.
    """
    if fleet.ranks == 1:
        return 0.0
    reduced = reduce_seconds(shape, work, device, fleet)
    return reduced + max(0.0, gather_seconds(shape, work, sharing, device, fleet, passes) - compute_seconds)


def reduce_seconds(shape: ModelShape, work: Workload, device: Device, fleet: Fleet) -> float:
    """An all-reduce of the adapters' fp32 gradients, or a reduce-scatter and a gather, which move as much."""
    size = lora_parameters(shape, work.lora_rank, work.lora_targets) * FP32
    moved = 2 * size * (fleet.ranks - 1) / fleet.ranks
    return moved / link_bytes_per_second(device, fleet) + math.ceil(size / BUCKET) * LATENCY_SECONDS


def gather_seconds(
    shape: ModelShape, work: Workload, sharing: Sharing, device: Device, fleet: Fleet, passes: int
) -> float:
    """All weights for each pass, twice where they are freed between forward and backward; once a step where kept."""
    if fleet.ranks == 1 or not sharing.divides_weights:
        return 0.0
    times = 2 * passes if sharing.name == "zero3" or sharing.reshard else 1
    moved = weight_bytes(shape, work) * (fleet.ranks - 1) / fleet.ranks
    return times * (moved / link_bytes_per_second(device, fleet) + shape.layers * LATENCY_SECONDS)
