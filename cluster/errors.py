"""Errors of the cluster side: one clear sentence each, picklable, so that they cross from an actor to its caller."""

from __future__ import annotations


class ClusterError(Exception):
    """Something about the cluster, the registry or the store that a person can act on. Commands exit with code 2."""


class RunConflict(ClusterError):  # noqa: N818
    """A run of this id exists already, or has already ended."""


class UnknownRun(ClusterError):  # noqa: N818
    """No run of this id is in the registry."""


class RegistryLost(ClusterError):  # noqa: N818
    """There are folders of runs, but no registry that knows them."""


class RegistryDamaged(ClusterError):  # noqa: N818
    """The registry's file is not a database that can be read."""


class DiskFull(ClusterError):  # noqa: N818
    """The head's disk has no room for what the registry would write."""


class StoreError(ClusterError):
    """The checkpoint store refused or could not finish something; nothing half-done was published."""


class StaleGeneration(StoreError):  # noqa: N818
    """A rank of an older attempt tried to write after a newer attempt had begun."""


class UnfitCluster(ClusterError):  # noqa: N818
    """The nodes are not such that a run could succeed on them: versions differ, or GPUs are not what Ray says."""


class ResourcesUnavailable(ClusterError):  # noqa: N818
    """The cluster had no room for the ranks that were asked for, within the time that was set."""
