"""Real training at the size that was found, on rows as bad as rows can be: does it stay below the cap?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from gemfleet.train.config.schema import TrainConfig

from ..shared.children import child_environment

STEPS, PASSES = 3, 2


def train_under_cap(config: TrainConfig, model_folder: Path, rows: int) -> dict[str, Any]:
    """`STEPS` steps with checkpoints and evaluations in a fresh process, whose cap is that of `config`.

    Returns its peak resident set and its steps, or the error that ended it.
    """
    task = {
        "config": config.with_micro(rows).model_dump(mode="json", by_alias=True),
        "model_folder": str(model_folder),
    }
    command = [sys.executable, "-m", f"{__package__}.training_child", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(threads=2), check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1][:300] if lines else f"ended with code {done.returncode}"}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
