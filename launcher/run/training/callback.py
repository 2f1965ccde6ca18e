"""Tells Ray's controller, after ranks failed, whether it may restart them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from gemfleet.cluster.inventory import answering_nodes, of_kind
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.recorder_client import RecorderClient
from gemfleet.launcher.placement import Placement
from ray.train import UserCallback

from .failure_policy import Asked, Decision, End, Relocate, Restart, Shrink, decide

log = logging.getLogger("gemfleet.launcher")


class FitEndedError(RuntimeError):
    """Ends Ray's fit, for a decision that the driver carries out. The message is its reason."""


class RestartOnlyWhereDecided(UserCallback):  # type: ignore[misc]
    """Runs in Ray's controller. When `after_exception` raises, the fit ends; when it returns, Ray restarts the ranks.

    When the head does not answer, Ray restarts them too, and the next failure asks again.
    """

    def __init__(
        self, recorder: RecorderClient, placement: Placement, staged: Collection[str], max_failures: int
    ) -> None:
        """staged: ids of the nodes that hold the model; Ray would also place ranks on others"""
        self._recorder, self._placement = recorder, placement
        self._staged, self._max_failures = frozenset(staged), max_failures

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Raises FitEndedError unless the ranks shall restart on the same nodes."""
        try:
            decision = self._decide(worker_exceptions)
        except Exception:
            log.exception("the head could not be asked; Ray's own restart goes on")
            return
        if reason := reason_to_end(decision):
            raise FitEndedError(reason)

    def _decide(self, failures: Mapping[int, Exception]) -> Decision:
        error = next(iter(failures.values()), RuntimeError("the ranks failed"))
        asked = Asked(self._max_failures)
        decision = decide(self._recorder.launch_events(), error, asked)
        if not (isinstance(decision, End) and decision.reason):
            for rank, failure in failures.items():
                self._recorder.event(EventKind.RANK_FAILED, f"rank {rank}: {error_line(failure)}", {"rank": rank})
        if isinstance(decision, Restart | End) and not reason_to_end(decision) and self._tell_of_lost_places():
            decision = decide(self._recorder.launch_events(), error, asked)
        return decision

    def _tell_of_lost_places(self) -> bool:
        """Tell an event if the nodes with the model lack room for all ranks, or if a node without the model joined.

        Returns whether it did. Ray itself would wait silently, or place ranks on the new node.
        """
        size = self._placement.cpus_per_rank, self._placement.gpus_per_rank
        nodes = [n for n in of_kind(answering_nodes(), self._placement.kind) if n.bundles(*size, free=False)]
        room = sum(node.bundles(*size, free=False) for node in nodes if node.id in self._staged)
        joined = [node.address for node in nodes if node.id not in self._staged]
        if room >= self._placement.ranks and not joined:
            return False
        text = f"ranks were lost; nodes that hold the model have places for {room} of {self._placement.ranks}"
        self._recorder.event(EventKind.PLACES_LOST, text, {"room": room, "joined": joined})
        return True


def reason_to_end(decision: Decision) -> str:
    """Why this decision ends the fit. Empty where Ray decides by its own count of failures."""
    if isinstance(decision, Shrink):
        return str(decision.cause["message"])
    return decision.reason if isinstance(decision, Relocate | End) else ""


def error_line(error: BaseException) -> str:
    """The type and the first line of a failed rank's own error, without Ray's pages around it."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {lines[0][:300]}"
