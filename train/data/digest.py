"""A digest of all usable examples. By it, a resumed run notices that its data has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .packing import TokenBlock

Digests = NDArray[np.uint64]


@dataclass(frozen=True)
class DataDigest:
    """Digests of all usable examples, their tokens and supervision: one with their order, one without it.

    mixture: sizes and shares of several sets to train on; empty for one set
    evaluation: a digest of the sets of `train.data.eval`; empty where there are none; None: not known
    """

    examples: int
    ordered: str
    unordered: str
    mixture: str = ""
    evaluation: str | None = None


def example_digests(block: TokenBlock) -> Digests:
    """A digest of each example's tokens, supervision and pictures. [N]"""
    tokens, supervised, offsets = block.tokens, block.supervised, block.offsets.tolist()
    pictures = np.searchsorted(block.picture_starts, block.offsets)
    found = np.empty(len(block), np.uint64)
    for index in range(len(block)):
        part = slice(offsets[index], offsets[index + 1])
        content = tokens[part].tobytes() + supervised[part].tobytes()
        content += block.pictures[pictures[index] : pictures[index + 1]].tobytes()
        found[index] = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    return found


def run_digest(train: Iterable[Digests], mixture: str, evaluation: Iterable[Digests]) -> DataDigest:
    """The digest of all that a run reads. train, evaluation: of each block; mixture: see `Mixture.describe`"""
    scored = data_digest(evaluation)
    return replace(data_digest(train), mixture=mixture, evaluation=scored.ordered if scored.examples else "")


def data_digest(parts: Iterable[Digests]) -> DataDigest:
    """The digest of all examples, made of the digests of their blocks."""
    digests = np.concatenate([np.empty(0, np.uint64), *parts])
    ordered = hashlib.blake2b(digests.astype("<u8").tobytes(), digest_size=16).hexdigest()
    return DataDigest(len(digests), ordered, f"{int(digests.sum(dtype=np.uint64)):016x}")
