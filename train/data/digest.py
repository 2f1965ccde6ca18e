"""A digest of all usable examples, by which a resumed run notices that its data has changed."""

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
    """All usable examples of a data set, tokens and supervision: in their order, and whatever their order."""

    examples: int
    ordered: str
    unordered: str


def example_digests(block: TokenBlock) -> Digests:
    """[N], of each example's tokens and of which of them are supervised."""
    tokens, supervised, offsets = block.tokens, block.supervised, block.offsets.tolist()
    found = np.empty(len(block), np.uint64)
    for index in range(len(block)):
        part = slice(offsets[index], offsets[index + 1])
        content = tokens[part].tobytes() + supervised[part].tobytes()
        found[index] = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    return found


def data_digest(parts: Iterable[Digests]) -> DataDigest:
    """Of all examples, from those of the blocks they lie in."""
    digests = np.concatenate([np.empty(0, np.uint64), *parts])
    ordered = hashlib.blake2b(digests.astype("<u8").tobytes(), digest_size=16).hexdigest()
    return DataDigest(len(digests), ordered, f"{int(digests.sum(dtype=np.uint64)):016x}")
