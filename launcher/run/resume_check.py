"""What keeps a run from going on from its newest checkpoint, found without loading anything."""

from __future__ import annotations

import json
from pathlib import Path

from gemfleet.train.checkpoint.lineage import Lineage, base_digest, changes_since, refuse_other_shapes
from gemfleet.train.checkpoint.state import CONFIG_FILE
from gemfleet.train.config.schema import TrainConfig

from ..runs.checkpoints import shelf_of


def check_resume(train: TrainConfig, run_folder: Path, accept_changes: bool) -> list[str]:
    """Changes since the newest checkpoint that are accepted; UserError for those that are not. [] without a checkpoint.

    The data is compared only by the run itself, once it is tokenised; so is a base that is not in a folder here.
    """
    with shelf_of(run_folder) as shelf:
        newest, _ = shelf.newest_verified()
        if newest is None:
            return []
        made = json.loads((shelf.at_hand(newest.step) / CONFIG_FILE).read_text())
    name = f"checkpoint-{newest.step}"
    refuse_other_shapes(name, made, train)
    base = Path(train.model).expanduser()
    lineage = Lineage(base_digest(base) if base.is_dir() else None, None, accept_changes)
    return changes_since(name, made, train, lineage)
