"""A digest of all usable examples. By it, a resumed run notices that its data has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .packing import TokenBlock

Digests = NDArray[np.uint64]


@dataclass(frozen=True)
class DataDigest:
    """Digests of all usable examples, their tokens and supervision: one with their order, one without it."""

    examples: int
    ordered: str
    unordered: str


def example_digests(block: TokenBlock) -> Digests:
    """A digest of each example's tokens and supervision. [N]"""
    tokens, supervised, offsets = block.tokens, block.supervised, block.offsets.tolist()
    found = np.empty(len(block), np.uint64)
    for index in range(len(block)):
        part = slice(offsets[index], offsets[index + 1])
        content = tokens[part].tobytes() + supervised[part].tobytes()
        found[index] = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    return found


def data_digest(parts: Iterable[Digests]) -> DataDigest:
    """The digest of all examples, made of the digests of their blocks."""
    digests = np.concatenate([np.empty(0, np.uint64), *parts])
    ordered = hashlib.blake2b(digests.astype("<u8").tobytes(), digest_size=16).hexdigest()
    return DataDigest(len(digests), ordered, f"{int(digests.sum(dtype=np.uint64)):016x}")
