"""The attempts of a run: every group of workers that Ray starts for it is one."""

from __future__ import annotations

from dataclasses import dataclass

from gemfleet.cluster.checkpoint_store.client import StoreClient
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.recorder_client import RecorderClient
from gemfleet.cluster.registry.run_records import RunState


@dataclass(frozen=True)
class Attempts:
    """Counts attempts for Ray's controller; picklable. Every attempt of a launch after its first is a restart.

    before: the generation that this launch took for itself, so that ranks of an older launch can write nothing
    """

    store: StoreClient
    recorder: RecorderClient
    before: int

    def __call__(self) -> int:
        generation = self.store.begin_attempt()
        number = generation - self.before
        self.recorder.event(EventKind.ATTEMPT, f"attempt {number} begins", {"generation": generation})
        if number > 1:
            self.recorder.transition(RunState.RESTARTING, f"attempt {number}")
        return generation
