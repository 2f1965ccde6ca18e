"""What the quick part of the doctor means for a run."""

from __future__ import annotations

import pytest
from gemfleet.cluster.doctor.report import Finding, Level
from gemfleet.cluster.errors import UnfitCluster
from gemfleet.launcher.run.preflight import fitness

GREEN = Finding("versions", "cluster", Level.PASS, "equal on 2 nodes")


def finding(check: str, level: Level) -> Finding:
    return Finding(check, "10.0.0.2", level, "what was measured", "what to do")


def test_a_sound_cluster_needs_no_words() -> None:
    assert fitness([GREEN]) == []


def test_other_versions_on_a_node_keep_the_run_from_starting() -> None:
    with pytest.raises(UnfitCluster) as error:
        fitness([GREEN, finding("versions", Level.FAIL), finding("gpus", Level.FAIL), finding("space", Level.WARN)])
    assert "versions (10.0.0.2): what was measured; what to do" in str(error.value)
    assert "gpus (10.0.0.2)" in str(error.value)
    assert "space" not in str(error.value)


def test_a_run_on_cpus_does_not_mind_gpus_that_torch_cannot_use() -> None:
    with pytest.raises(UnfitCluster):
        fitness([finding("gpus", Level.FAIL)])
    assert fitness([finding("gpus", Level.FAIL), finding("gpu health", Level.FAIL)], uses_gpus=False) == []


def test_what_others_judge_better_is_only_said() -> None:
    assert fitness([finding("space", Level.FAIL), finding("limits", Level.FAIL)]) == [
        "space (10.0.0.2): what was measured; what to do"
    ]
