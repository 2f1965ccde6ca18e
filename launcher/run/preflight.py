"""What of the doctor's findings keeps a run from starting, and what is only said: a pure decision."""

from __future__ import annotations

from collections.abc import Sequence

from gemfleet.cluster.doctor.report import Finding, Level, failures
from gemfleet.cluster.errors import UnfitCluster

# A run could not succeed, or its ranks would not compute the same. Space is left to what needs it: the store's own
# limit for the head's disk, Ray's for shared memory.
KEEPS_FROM_STARTING = frozenset({"answer", "versions", "gpus", "interface"})
SAID = KEEPS_FROM_STARTING | {"space", "gpu health", "gpu clocks"}


def fitness(findings: Sequence[Finding], uses_gpus: bool = True) -> list[str]:
    """Sentences for the person, one for each thing that is not right. UnfitCluster where a run makes no sense.

    uses_gpus: False for a run that leaves the cluster's GPUs alone
    """
    if not uses_gpus:
        findings = [finding for finding in findings if not finding.check.startswith("gpu")]
    stops = [finding for finding in failures(findings) if finding.check in KEEPS_FROM_STARTING]
    if stops:
        lines = "".join(f"\n  {finding.sentence()}" for finding in stops)
        raise UnfitCluster(f"the cluster is not fit for a run (`gemfleet doctor` says more):{lines}")
    return [f.sentence() for f in findings if f.level is not Level.PASS and f.check in SAID]
