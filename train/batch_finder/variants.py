"""The ways to train that a search tries: ways to share the work, without recomputation and with some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..config.schema import TrainConfig
from ..planning import Sharing
from ..planning.auto_strategy import Option
from .finder import Variant

SMALLER_LOSS = 512  # rows in a chunk: on a GPU, 2.2 GiB less of logits than with 2048, and hardly slower


def variants_of(config: TrainConfig, options: Sequence[Option] = ()) -> list[Variant]:
    """The variants in the order in which they are tried.

    Recomputation varies only if the configuration leaves it open. Each variant but the first is tried only if memory
    limits the one that it saves memory of.

    options: the ways that fit, by the plan, if the configuration leaves the strategy open
    """
    return _shared(options) or _unshared(config)


def _unshared(config: TrainConfig) -> list[Variant]:
    """The variants of the configured strategy, if the plan gave no options."""
    if config.activation_checkpointing != "auto":
        return [Variant(config.strategy)]
    whole, less = ((("activation_checkpointing", mode),) for mode in ("off", "selective"))
    return [
        Variant(config.strategy, whole),
        Variant(f"{config.strategy}, selective", less, if_limited=config.strategy),
    ]


def _shared(options: Sequence[Option]) -> list[Variant]:
    """The variants of the plan's options, and the first with a smaller loss.

    `full` costs a third of the speed, so it comes only if nothing else fits.
    """
    light = [option for option in options if option.choice.sharing.checkpointing != "full"]
    by_sharing = {option.choice.sharing: option for option in light or options}
    found = [
        Variant(_name(sharing), option.changes, _larger(sharing, by_sharing)) for sharing, option in by_sharing.items()
    ]
    return found[:1] + [smaller for first in found[:1] if (smaller := _with_smaller_loss(first))] + found[1:]


def _with_smaller_loss(variant: Variant) -> Variant | None:
    """The variant with fewer rows in a chunk of the loss; None if it has few already, or if the person chose them."""
    changes = dict(variant.changes)
    if changes.get("loss_chunk_rows", 0) <= SMALLER_LOSS:
        return None
    name = f"{variant.name}, loss in chunks of {SMALLER_LOSS} rows"
    return Variant(name, tuple({**changes, "loss_chunk_rows": SMALLER_LOSS}.items()), if_limited=variant.name)


def _larger(sharing: Sharing, all_: Mapping[Sharing, Option]) -> str | None:
    """The name of the next variant that needs more memory and less time; None for the plan's first choice."""
    first = next(iter(all_))
    nearest = (replace(sharing, checkpointing="off"), replace(sharing, reshard=False), first)
    return None if sharing == first else next(_name(other) for other in nearest if other in all_ and other != sharing)


def _name(sharing: Sharing) -> str:
    """`fsdp2, kept gathered, selective`"""
    return str(sharing).removesuffix(" activation checkpointing")
