"""Which section each suite's records make, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..shared.record import Record
from .chart import Section
from .others import (
    batch_finder_section,
    faults_section,
    launch_section,
    peers_section,
    plain_section,
    plan_section,
)
from .training import scaling_section, throughput_section

SECTIONS: dict[str, Callable[[Sequence[Record]], Section]] = {
    "peers": peers_section,
    "throughput": throughput_section,
    "scaling": scaling_section,
    "launch": launch_section,
    "faults": faults_section,
    "plan": plan_section,
    "batch-finder": batch_finder_section,
}


def sections(records: Sequence[Record]) -> list[Section]:
    """One for each suite there are records of, the ones with charts first."""
    suites = dict.fromkeys([*SECTIONS, *(record.suite for record in records)])
    found = {suite: [record for record in records if record.suite == suite] for suite in suites}
    return [SECTIONS.get(suite, plain_section)(mine) for suite, mine in found.items() if mine]
