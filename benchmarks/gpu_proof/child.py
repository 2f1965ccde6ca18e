"""`python -m ....gpu_proof.child PART...`: proves parts one after the other, in one process, in a process group of one.

Tells its parent what it finds as JSON lines on the standard output; what libraries print goes to the standard error.
A part that leaves the device unusable ends the process, and the parent starts another for the parts that are left.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from gemfleet.train.device.abilities import prepare_process

from .registry import PARTS, Part
from .stage import Stage, facts_of

UNUSABLE = 3  # exit code


def main() -> None:
    """Prove the parts named on the command line."""
    arguments = _arguments()
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(event: Any) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    prepare_process(ranks_on_node=1)
    if arguments.quick:
        torch.set_num_threads(1)  # threads that wait for one another cost a busy machine more than tiny shapes do
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    backend = "cpu:gloo,cuda:nccl" if arguments.device == "cuda" else "gloo"
    facts = facts_of(arguments.device)
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    for name in arguments.parts:
        tell({"event": "begin", "part": name})
        stage = Stage(arguments.numbers, tell, facts=facts, folder=arguments.folder, quick=arguments.quick)
        tell({"event": "end", "error": prove(PARTS[name], stage)})
        if not usable(stage):
            os._exit(UNUSABLE)
    os._exit(0)  # nothing that a library does at the end of a process matters here


def prove(part: Part, stage: Stage) -> str | None:
    """The error that ended the part early, None where it came to its end."""
    try:
        part.prove(stage)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"[:2000]
    return None


def usable(stage: Stage) -> bool:
    """Frees what the part held; whether the device still answers."""
    gc.collect()
    try:
        if stage.on_cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except RuntimeError:
        traceback.print_exc()
        return False
    return True


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="+", choices=tuple(PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-numbers", dest="numbers", action="store_false")
    return parser.parse_args()


if __name__ == "__main__":
    main()
