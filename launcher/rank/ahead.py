"""What a rank's process imports before Ray Train gives it work, while the run still prepares or other ranks train."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module

from gemfleet.cluster.phases import PHASES
from gemfleet.train.collector import uncollected

HOOK = "gemfleet.launcher.rank.ahead.import_for_training"
RANK_VARIABLES = {"__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": HOOK}  # Ray calls it before it gives the process work
MODULES = (  # not peft: with it comes bitsandbytes, which asks CUDA for its devices
    "gemfleet.launcher.rank.train_rank",
    "ray.train.v2._internal.execution.worker_group.worker",
    "gemfleet.train.worker",
    "transformers.models.gemma3.modeling_gemma3",
    "accelerate",
)


def import_for_training() -> None:
    """Runs in each rank's process before Ray gives it work. CUDA must not start here: its GPU is not chosen yet."""
    PHASES.enter("imports")
    with uncollected(kept=True):
        for module in MODULES:
            with suppress(Exception):  # whoever needs it says what is wrong
                import_module(module)
    PHASES.enter("waits for Ray Train")


def leave_out_bitsandbytes() -> None:
    """For this process no such package is installed. peft imports it wherever it is, which takes a second or more."""
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
