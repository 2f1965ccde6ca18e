"""What a launch imports before it needs it is time that a person waits."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Each takes a second or more of every process that a launch starts: driver, controller, data tasks, ranks.
DEAR = ("torch._dynamo", "torch.distributed.fsdp", "transformers", "deepspeed", "peft", "datasets")


@pytest.mark.parametrize("module", ["gemfleet.launcher.run.launch", "gemfleet.launcher.rank.train_rank"])
def test_starting_a_run_imports_nothing_dear(module: str) -> None:
    program = f"import sys, {module}; print([name for name in {DEAR!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
