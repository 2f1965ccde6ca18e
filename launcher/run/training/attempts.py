"""Counts the attempts of a run: each group of ranks that Ray starts is one."""

from __future__ import annotations

from dataclasses import dataclass

from gemfleet.cluster.checkpoint_store.client import StoreClient
from gemfleet.cluster.phases import PHASES
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.recorder_client import RecorderClient
from gemfleet.cluster.registry.run_records import RunState


@dataclass(frozen=True)
class Attempts:
    """Begins an attempt when Ray's controller calls it. Picklable. Each but the first of a fit is a restart.

    before: the generation that the fit took for itself, so that older ranks can write nothing
    """

    store: StoreClient
    recorder: RecorderClient
    before: int

    def __call__(self) -> int:
        PHASES.enter("process group")
        generation = self.store.begin_attempt()
        number = generation - self.before
        self.recorder.event(EventKind.ATTEMPT, f"attempt {number} begins", {"generation": generation})
        if number > 1:
            self.recorder.transition(RunState.RESTARTING, f"attempt {number}")
        self.recorder.phases(PHASES.taken(f"Ray Train's controller, attempt {number}"))
        return generation
