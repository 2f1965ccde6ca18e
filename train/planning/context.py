"""What context parallelism makes of a pass: the tokens of each rank, and the keys and values that they exchange."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Literal

import numpy as np

from ..context.shares import LEAST_TOKENS, Cost, Share, divide
from .counts import lora_parameters
from .flops import FlopCounter
from .options import Fleet, Sharing, Workload
from .shapes import ModelShape

SHORTEST = 256  # tokens of a share that the plan proposes; still shorter ones save no memory worth their exchanges
EXCHANGES = 2  # of a layer in a pass: one in forward, and the reverse in backward


def contexts(asked: int | Literal["auto"], work: Workload, fleet: Fleet) -> list[int]:
    """The sizes of context groups to try, the least first. None if the ranks do not form whole groups.

    A picture's tokens see one another, so `auto` shares no pass that holds some, and none where a rank's share of a
    step follows its speed.
    """
    if asked == "auto":
        if work.pictures != "none" or work.by_speed:
            return [1]
        most = max(1, min(fleet.ranks, work.tokens // SHORTEST))
        return [size for size in range(1, most + 1) if fleet.ranks % size == 0]
    return [] if fleet.ranks % asked else [asked]


def shares(shape: ModelShape, work: Workload, context: int) -> tuple[Share, ...]:
    """What each rank of a group has of a pass of full rows."""
    counter = FlopCounter(shape, lora_parameters(shape, work.lora_rank, work.lora_targets))
    cost = counter.cost()
    everywhere = replace(cost, token=cost.token + work.supervised * cost.scored)
    return _divided(work.document, work.length, work.micro, context, everywhere)


@cache
def _divided(document: int, length: int, rows: int, context: int, cost: Cost) -> tuple[Share, ...]:
    whole, rest = divmod(length, document)
    row = [document] * whole + [rest] * (rest > 0)
    filling = max(0, context * LEAST_TOKENS - length * rows)
    lengths = np.array(row * rows + [filling] * (filling > 0), np.int32)
    return divide(lengths, np.zeros(int(lengths.sum()), np.bool_), context, cost)


def neediest(shape: ModelShape, work: Workload, context: int) -> set[Share]:
    """The shares of which one needs most memory: that with most tokens, and that with most keys of other ranks."""
    found = shares(shape, work, context)
    return {max(found, key=lambda share: share.tokens), max(found, key=lambda share: share.position)}


def work_of_share(work: Workload, share: Share) -> Workload:
    """The work of a rank that has this share of each pass."""
    return replace(work, length=share.tokens, micro=1, example_tokens=min(work.document, share.tokens))


def earlier_kept(shape: ModelShape, work: Workload, sharing: Sharing, share: Share) -> int:
    """Bytes of the keys and values of other ranks that a pass keeps for backward.

    Under activation checkpointing they are those of one layer, as backward gets them again.
    """
    of_global, of_sliding = share.before(None), share.before(shape.window)
    if sharing.checkpointing != "off":
        return _bytes(shape, work) * max(of_global, of_sliding)
    full = shape.layers - shape.sliding_layers
    return _bytes(shape, work) * (full * of_global + shape.sliding_layers * of_sliding)


def mask_kept(work: Workload, share: Share) -> int:
    """Bytes of the mask that SDPA needs for a document that began in an earlier share; one for all layers.

    SDPA serves fp32. The kernels for 16 bits need no mask.
    """
    queries, earlier = share.lengths[0], share.before(None)
    return 0 if work.dtype == "bf16" or not earlier else queries * (earlier + queries) * work.bytes_per_value


def exchanged_bytes(shape: ModelShape, work: Workload, sharing: Sharing) -> int:
    """Bytes that the ranks of a group send to one another in one pass, forward and backward."""
    return sum(received_bytes(shape, work, sharing, share) for share in shares(shape, work, sharing.context))


def received_bytes(shape: ModelShape, work: Workload, sharing: Sharing, share: Share) -> int:
    """Bytes that one rank gets in the forward pass and sends back in the backward pass."""
    full = shape.layers - shape.sliding_layers
    tokens = full * share.before(None) + shape.sliding_layers * share.before(shape.window)
    return times(sharing) * _bytes(shape, work) * tokens


def times(sharing: Sharing) -> int:
    """Exchanges of a layer in a pass. What backward computes again exchanges again."""
    return EXCHANGES + (sharing.checkpointing != "off")


def _bytes(shape: ModelShape, work: Workload) -> int:
    """Bytes of a token's keys and values in one layer."""
    return 2 * shape.keys * work.bytes_per_value
