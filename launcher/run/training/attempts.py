"""The attempts of a run: every group of workers that Ray starts for it is one."""

from __future__ import annotations

from dataclasses import dataclass

from gemfleet.cluster.checkpoint_store.client import StoreClient
from gemfleet.cluster.head import HeadActor


@dataclass(frozen=True)
class Attempts:
    """Counts attempts for Ray's controller; picklable. Every attempt of a launch after its first is a restart.

    before: the generation that this launch took for itself, so that ranks of an older launch can write nothing
    """

    store: StoreClient
    recorder: HeadActor
    before: int

    def __call__(self) -> int:
        generation = self.store.begin_attempt()
        self.recorder.call("event", "attempt", f"attempt {generation - self.before} begins", {"generation": generation})
        if generation > self.before + 1:
            self.recorder.call("transition", "restarting", f"attempt {generation - self.before}")
        return generation
