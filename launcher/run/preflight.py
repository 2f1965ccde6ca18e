"""The preflight: checks that the nodes are fit for a run, and decides where its ranks go."""

from __future__ import annotations

from collections.abc import Sequence

from gemfleet.cluster.checkpoint_store.location import check_storage
from gemfleet.cluster.doctor.examine import check_quickly
from gemfleet.cluster.doctor.report import Finding, Level, failures
from gemfleet.cluster.errors import UnfitCluster
from gemfleet.cluster.inventory import answering_nodes
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.placement import Placement
from gemfleet.train.config.home import gemfleet_home

from .admission import find_places
from .session import RunSession

# A run on such a node would fail, or its ranks would not compute the same. Lack of space stops no run here: the store
# has its own limit for the head's disk, and Ray has one for shared memory.
KEEPS_FROM_STARTING = frozenset({"answer", "versions", "gpus", "interface"})
SAID = KEEPS_FROM_STARTING | {"space", "gpu health", "gpu clocks"}


def preflight(run: RunSession) -> Placement:
    """Check the nodes, decide on the ranks, and wait until the cluster has room for them."""
    cluster = run.config.cluster
    run.enter(RunState.PREFLIGHT, "preflight")
    check_storage(cluster.storage, run.folder, is_new=run.is_new)
    findings = check_quickly(answering_nodes(), gemfleet_home())
    for warning in fitness(findings, uses_gpus=cluster.gpus_per_worker != 0):
        run.note(warning)
    return find_places(run)


def fitness(findings: Sequence[Finding], uses_gpus: bool = True) -> list[str]:
    """A sentence for each finding that a person should hear of. Raises UnfitCluster where the run could not succeed.

    uses_gpus: whether findings about GPUs count
    """
    if not uses_gpus:
        findings = [finding for finding in findings if not finding.check.startswith("gpu")]
    stops = [finding for finding in failures(findings) if finding.check in KEEPS_FROM_STARTING]
    if stops:
        lines = "".join(f"\n  {finding.sentence()}" for finding in stops)
        raise UnfitCluster(f"the cluster is not fit for a run (`gemfleet doctor` says more):{lines}")
    return [f.sentence() for f in findings if f.level is not Level.PASS and f.check in SAID]
