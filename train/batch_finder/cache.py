"""Keeps the micro-batches of earlier searches in one JSON file on the head, by all that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config.home import gemfleet_home

FORMAT = 1


@dataclass(frozen=True)
class CachedBatch:
    """What a search chose. found_at: seconds since the epoch; evaluation_rows: see `Found`"""

    variant: str
    rows: int
    speed: float
    peak_bytes: int
    evaluation_rows: int = 0
    found_at: float = field(default_factory=time.time)


class BatchCache:
    """The file at `path`, which the first entry makes. A file that cannot be read counts as no file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, key: str) -> CachedBatch | None:
        return self.entries().get(key)

    def put(self, key: str, found: CachedBatch) -> None:
        self._write({**self.entries(), key: found})

    def remove(self, key: str) -> None:
        self._write({k: found for k, found in self.entries().items() if k != key})

    def clear(self) -> int:
        """Removes all entries. Returns their number."""
        count = len(self.entries())
        self.path.unlink(missing_ok=True)
        return count

    def entries(self) -> dict[str, CachedBatch]:
        """The entries by key, the oldest first."""
        try:
            content = json.loads(self.path.read_text())
            if content["format"] != FORMAT:
                return {}
            return {key: CachedBatch(**value) for key, value in content["entries"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _write(self, entries: Mapping[str, CachedBatch]) -> None:
        """Replaces the file by a rename, so no reader sees half a file. Of two writers at once, the later one wins."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, "entries": {key: asdict(found) for key, found in entries.items()}}
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, prefix=".batch-", delete=False) as file:
            json.dump(content, file, indent=1)
        os.replace(file.name, self.path)


def batch_cache_file() -> Path:
    """The file of this head."""
    return gemfleet_home() / "cache" / "batch.json"


def cache_key(facts: Mapping[str, Any]) -> str:
    """A digest of all facts that decide what fits and how fast it is."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
