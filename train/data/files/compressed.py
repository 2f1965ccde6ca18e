"""Opens data files that may be compressed, as streams: nothing is unpacked to disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO, cast

CODECS = {".gz": "gzip", ".zst": "zstd"}


def compression(path: Path) -> str | None:
    """The codec of a file by its name: `gzip` of `rows.jsonl.gz`; None for one that is not compressed."""
    return CODECS.get(path.suffix.lower())


def unpacked_name(path: Path) -> Path:
    """The name without the extension of a compression: `rows.jsonl` of `rows.jsonl.gz`."""
    return path.with_suffix("") if compression(path) else path


def ending(path: Path) -> str:
    """The extension that names the format, in lower case: `.jsonl` of `rows.JSONL.gz`."""
    return unpacked_name(path).suffix.lower()


def open_bytes(path: Path) -> BinaryIO:
    """The content of a file, uncompressed. Raises OSError, now or while it is read; without a number if it is damaged.

    Apache Arrow unpacks; it reads several compressed parts end to end, as parallel programs write them.
    """
    codec = compression(path)
    if codec is None:
        return path.open("rb")
    import pyarrow as pa

    file = pa.CompressedInputStream(pa.OSFile(str(path)), codec)
    return cast(BinaryIO, io.BufferedReader(file, 2**16))
