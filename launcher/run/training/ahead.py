"""Starts what training needs while the run still prepares: the actors on the head, and processes for Ray Train.

The ranks' processes import torch meanwhile. While ranks train, others are there to take their places.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray.exceptions
from gemfleet.cluster.checkpoint_store.actor import StorePolicy, begin_store
from gemfleet.cluster.head import HeadActor
from gemfleet.cluster.inventory import answering_nodes, list_nodes
from gemfleet.cluster.registry.recorder_client import RecorderClient, start_recorder
from gemfleet.launcher.config.cluster import ClusterConfig
from gemfleet.launcher.placement import Placement
from gemfleet.launcher.run.session import RunSession
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.step.record import points

from .processes import Begun, start_for_training, start_spare

log = logging.getLogger("gemfleet.launcher")
MOST_TIMES = 3


@dataclass(frozen=True)
class HeadActors:
    """The run's recorder and store. They end when the driver lets go of this, or ends."""

    recorder: RecorderClient
    store: HeadActor


def start_ahead(run: RunSession, placement: Placement, begun: Begun | None) -> HeadActors:
    """Start the recorder and the store, and processes for Ray Train. Returns while all of them start.

    begun: what has been started already, see `joined_early`
    """
    cluster = run.config.cluster
    recorder = start_recorder(gemfleet_home(), run.id, points)
    store = begin_store(run.id, run.folder, recorder, store_policy(cluster), cluster.storage)
    if run.config.train.max_steps != 0:
        start_for_training(placement, answering_nodes(), begun)
    return HeadActors(recorder, store)


class SpareRanks:
    """Has spare processes for the ranks, once they train: before that they would only be in each other's way.

    At most `MOST_TIMES` in a launch: where Ray does not use them, their memory must not add up.
    """

    def __init__(self) -> None:
        self._times = 0
        self._pids: set[int] = set()
        self._since = 0.0
        self._started = True

    def look(self, snapshot: Mapping[str, Any]) -> None:
        """Call it often. snapshot: see `RunRecorder.snapshot`"""
        ranks = snapshot["ranks"]
        if pids := {rank["pid"] for rank in ranks} - self._pids:
            self._pids |= pids
            self._since, self._started = max(rank["heartbeat"] for rank in ranks), False
        step = snapshot["step"]
        if not self._started and step and step["time"] > self._since and self._times < MOST_TIMES:
            self._started = True
            self._times += 1
            try:
                start_spare(Counter(rank["node"] for rank in ranks), list_nodes())
            except (ray.exceptions.RayError, RuntimeError, OSError):  # the ranks train on without spare processes
                log.warning("the cluster could not be looked at; a restart will take longer", exc_info=True)


def store_policy(cluster: ClusterConfig) -> StorePolicy:
    gib = 2**30
    return StorePolicy(
        keep=cluster.keep_checkpoints,
        best_of="eval_loss" if cluster.keep_best else None,
        warn_free_bytes=int(cluster.warn_free_gib * gib),
        refuse_free_bytes=int(cluster.refuse_free_gib * gib),
    )
