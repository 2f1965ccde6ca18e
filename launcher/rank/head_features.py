"""The features of pictures that the head keeps, as ranks of any node see them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ray.exceptions
from gemfleet.cluster.errors import ClusterError
from gemfleet.cluster.head import HeadActor

log = logging.getLogger("gemfleet.launcher")


class HeadFeatures:
    """A `FeatureKeeper` behind an actor on the head. Picklable. A head that does not answer is not asked again."""

    def __init__(self, actor: HeadActor, limit_bytes: int) -> None:
        self._actor, self.limit_bytes = actor, limit_bytes
        self._silent = False

    def fetch(self, key: str, ids: Sequence[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = self._call("fetch", key, list(ids)) or {}
        return found

    def put(self, key: str, made: Mapping[int, bytes]) -> None:
        self._call("put", key, dict(made))

    def _call(self, method: str, *arguments: Any) -> Any:
        if self._silent:
            return None
        try:
            return self._actor.call(method, *arguments)
        except (ClusterError, ray.exceptions.RayError, OSError) as error:
            log.warning("the vision tower runs here, as the head gives and takes no features of pictures: %s", error)
            self._silent = True
            return None
