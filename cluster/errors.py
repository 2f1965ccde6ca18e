"""Errors of the cluster. Each is one clear sentence, and picklable, so that it crosses from an actor to its caller."""

from __future__ import annotations


class ClusterError(Exception):
    """A problem of the cluster, the registry or the store that a person can solve. Commands exit with code 2."""


class RunConflict(ClusterError):  # noqa: N818
    """A run of this id exists already, or has already ended."""


class UnknownRun(ClusterError):  # noqa: N818
    """No run of this id is in the registry."""


class RegistryLost(ClusterError):  # noqa: N818
    """Folders of runs are there, but no registry that knows them."""


class RegistryDamaged(ClusterError):  # noqa: N818
    """The registry's file cannot be read as a database."""


class DiskFull(ClusterError):  # noqa: N818
    """The head's disk has no room for what the registry has to write."""


class StoreError(ClusterError):
    """The checkpoint store refused something or could not finish it. It published nothing half-done."""


class StaleGeneration(StoreError):  # noqa: N818
    """A rank of an older attempt tried to write after a newer attempt had begun."""


class UnfitCluster(ClusterError):  # noqa: N818
    """No run can succeed on these nodes: their versions differ, or their GPUs are not what Ray says."""


class ResourcesUnavailable(ClusterError):  # noqa: N818
    """The cluster had no room for the ranks within the time that the user set."""
