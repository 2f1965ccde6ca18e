"""How a run went on after a fault, read from its registry."""

from __future__ import annotations

from typing import NamedTuple

from gemfleet.cluster.registry.run_registry import RunRegistry

RESUME_WORDS = "training goes on from "


class Recovery(NamedTuple):
    """resumed: a checkpoint's name, or that it began at step 0; seconds: from the fault to the step after that."""

    resumed: str
    steps_lost: int
    seconds: float


def recovery_of(registry: RunRegistry, run_id: str, at: float, last_step: int) -> Recovery:
    """From the first resume after the fault. StopIteration where the run never went on.

    at: when it happened, seconds since the epoch; last_step: the newest step known then
    """
    resume = next(e for e in registry.events(run_id) if e["kind"] == "resume" and e["time"] > at)
    resumed = resume["message"].removeprefix(RESUME_WORDS)
    start_step = int(resumed.removeprefix("checkpoint-")) if resumed.startswith("checkpoint-") else 0
    step = next(m for m in registry.metrics(run_id, kind="step") if m["step"] == start_step + 1)
    return Recovery(resumed, max(0, last_step - start_step), step["time"] - at)
