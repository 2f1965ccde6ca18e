"""Reads the file that W&B writes for a run: LevelDB's log format with W&B's own header, and protobuf records in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK, RECORD = 7, 32768, 7  # bytes
FULL, LAST = 1, 4


def wandb_records(path: Path) -> Iterator[Any]:
    """All records of a `.wandb` file."""
    from wandb.proto import wandb_internal_pb2

    content, at, parts = path.read_bytes(), HEADER, b""
    assert content.startswith(b":W&B")
    while at + RECORD <= len(content):
        if BLOCK - at % BLOCK < RECORD:  # the rest of a block is too short for a record
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + RECORD : at + RECORD + length]
        at += RECORD + length
        if kind in (FULL, LAST):
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def history_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's history, each with its step."""
    rows = [record.history for record in wandb_records(path) if record.HasField("history")]
    return [_values(row.item) | {"step": row.step.num} for row in rows]


def config_of(path: Path) -> dict[str, Any]:
    """The settings that a run was given."""
    found: dict[str, Any] = {}
    for record in wandb_records(path):
        for update in (record.config, record.run.config):
            found |= _values(update.update)
    return found


def artifacts_of(path: Path) -> list[str]:
    """The names of the files in a run's artifacts."""
    artifacts = [record.request.log_artifact.artifact for record in wandb_records(path)]
    artifacts += [record.artifact for record in wandb_records(path)]
    return sorted(entry.path for artifact in artifacts for entry in artifact.manifest.contents)


def exit_code(path: Path) -> int | None:
    """How the run ended; None where it did not."""
    codes = [int(record.exit.exit_code) for record in wandb_records(path) if record.HasField("exit")]
    return codes[-1] if codes else None


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
