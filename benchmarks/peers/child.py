"""`python -m ....peers.child CONTENDER TASK.json`: one contender in a process of its own.

Events go to the standard output as JSON lines; whatever the libraries print goes to the standard error.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .clock import StepClock
from .contenders import load_contender
from .task import Task


def main() -> None:
    """Run the contender named on the command line."""
    name, task_file = sys.argv[1:]
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    task = Task.load(Path(task_file))
    import torch

    torch.set_num_threads(task.threads)
    clock = StepClock(events)
    load_contender(name)(task, clock)
    clock.finish()


if __name__ == "__main__":
    main()
