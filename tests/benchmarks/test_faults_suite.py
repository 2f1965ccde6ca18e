"""What a fault costs: read from a registry, and judged beside the undisturbed run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from gemfleet.benchmarks.__main__ import main
from gemfleet.benchmarks.faults.faults import FAULTS, UNDISTURBED
from gemfleet.benchmarks.faults.recovery import Recovery, recovery_of
from gemfleet.benchmarks.faults.suite import SUITE, chosen
from gemfleet.benchmarks.shared.record import Record, Run, new_record, read_records
from gemfleet.cluster.registry.run_registry import RunRegistry


def record(case: str, *facts: dict[str, Any], failed: bool = False) -> Record:
    runs = [Run(repeat=n, started_at="", facts=fact) for n, fact in enumerate(facts)]
    if failed:
        runs.append(Run(repeat=len(runs), started_at="", error="it ended"))
    found = new_record("faults", case, {"steps": 100, "fault": case}, runs=runs)
    return found.model_copy(update={"results": SUITE.results(found) if found.good_runs else {}})


def fact(training: float, adapter: str = "a", **more: Any) -> dict[str, Any]:
    return {"training_seconds": training, "adapter_sha256": adapter, **more}


def test_recovery_is_read_from_the_first_resume_after_the_fault(tmp_path: Path) -> None:
    registry = RunRegistry(tmp_path / "gemfleet.db")
    registry.create_run("run", "name", "{}")
    registry.add_event("run", "resume", "training goes on from checkpoint-8")
    time.sleep(0.01)
    at = time.time()
    registry.add_metrics("run", [{"kind": "step", "step": step, "time": at + step} for step in range(1, 20)])
    registry.add_event("run", "resume", "training goes on from checkpoint-12")
    assert recovery_of(registry, "run", at, 14) == Recovery("checkpoint-12", 2, 13.0)
    with pytest.raises(StopIteration):
        recovery_of(registry, "run", time.time() + 1, 14)


def test_time_counts_beside_the_undisturbed_run_and_adapters_must_be_the_same() -> None:
    disturbed: dict[str, Any] = {"seconds": 8.0, "steps_lost": 3}
    records = SUITE.side_by_side(
        [
            record(UNDISTURBED, fact(10.0), fact(12.0)),
            record("rank-killed", fact(22.0, **disturbed), fact(22.0, seconds=10.0, steps_lost=1)),
            record("rank-hangs", fact(11.0, "another", **disturbed)),
            record("store-killed", fact(11.0, **disturbed), failed=True),
            record("terminated", failed=True),
        ]
    )
    found = {each.case: each.results for each in records}
    assert found[UNDISTURBED]["effective_time_ratio"] == 1.0
    assert found["rank-killed"] == {
        "training_seconds": 22.0,
        "recovery_seconds": 9.0,
        "recovery_seconds_worst": 10.0,
        "steps_lost_worst": 3,
        "effective_time_ratio": 0.5,
        "same_adapter": True,
    }
    assert [found[case].get("same_adapter") for case in ("rank-hangs", "store-killed", "terminated")] == [
        False,
        False,
        None,
    ]
    rows = {row[0]: row[1:] for row in SUITE.section(records).tables[0].rows}
    assert rows["rank-killed"] == ["9.0", "10.0", "3", "22.0", "50.0%", "the same"]
    assert rows["rank-hangs"][-1] == "differs"
    assert rows["terminated"][-1] == "failed"
    assert SUITE.misses(records) == [
        f"{case}: the adapter is not the same" for case in ("rank-hangs", "store-killed", "terminated")
    ]
    assert SUITE.section(records).charts[0].series[0].x == ["rank-killed", "rank-hangs", "store-killed"]


def test_the_undisturbed_run_is_always_there_and_unknown_faults_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen("rank-killed,rank-killed") == [UNDISTURBED, "rank-killed"]
    assert main(["faults", "--cases", "flood"]) == 2
    said = capsys.readouterr().err
    assert [name for name in ("flood", *FAULTS) if name not in said] == []


@pytest.mark.slow
@pytest.mark.timing
def test_a_killed_rank_costs_time_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults", "--quick", "--out", str(tmp_path)]) == 0
    ratios = json.loads(capsys.readouterr().out.splitlines()[-1])["effective_time_ratio"]
    killed = {each.case: each for each in read_records(tmp_path)}["rank-killed"]
    assert 0 < ratios["rank-killed"] < 1
    assert killed.results["same_adapter"]
    assert killed.runs[0].facts["resumed"].startswith("checkpoint-")
