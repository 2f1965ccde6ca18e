"""`gemfleet tensorboard`"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from .options import Run


def tensorboard(
    run: Run,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of this machine to listen at.")] = 6006,
) -> None:
    """Open TensorBoard on a run's folder, at this machine's loopback address, until Ctrl-C.

    Examples:

      gemfleet tensorboard latest --port 6007
    """
    from .local_runs import open_registry, run_folder

    folder = run_folder(open_registry().find_run(run).id) / "runs"
    folder.mkdir(parents=True, exist_ok=True)  # a run that does not train yet has no such folder
    options = ["--logdir", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *options])
