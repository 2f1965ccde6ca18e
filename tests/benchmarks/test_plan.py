"""The plan's memory against what was measured: the committed measurements, and one taken here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gemfleet.benchmarks.__main__ import main
from gemfleet.benchmarks.plan.cases import CASES
from gemfleet.benchmarks.plan.suite import TOLERANCE
from gemfleet.benchmarks.shared.record import Record, read_record
from support.places import RESULTS

GIB = 2**30


def records() -> list[Record]:
    """Oldest first."""
    return [read_record(path) for path in sorted(RESULTS.glob("plan-*/plan-*.json"))]


def newest_results() -> dict[str, dict[str, Any]]:
    """The newest measurement of each case that there still is."""
    return {record.case: record.results for record in records() if record.case in CASES}


@pytest.mark.parametrize("case", newest_results())
def test_the_plan_of_today_foretells_what_was_measured(case: str) -> None:
    """Not the prediction in the record but the one that the code makes now."""
    measured = newest_results()[case]["measured_bytes"]
    assert measured > GIB
    assert CASES[case].predicted().total == pytest.approx(measured, rel=TOLERANCE)


def test_several_sizes_are_measured_and_no_record_names_a_path() -> None:
    assert len({CASES[name].size for name in newest_results()}) >= 2
    assert all(record.command.startswith("python -m benchmarks plan") for record in records())
    assert all("/" not in record.command.replace("benchmarks/results", "") for record in records())


@pytest.mark.slow
def test_a_fresh_process_takes_what_was_foretold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails where the prediction is off by more than a fifth."""
    assert main(["plan", "--cases", "270m-bf16-512x2", "--out", str(tmp_path)]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    record = read_record(tmp_path / "plan-270m-bf16-512x2.json")
    assert record.results["measured_bytes"] > GIB
    assert abs(summary["worst_error"]) <= TOLERANCE
    assert "270m-bf16-512x2" in (tmp_path / "plan.md").read_text()


def test_an_unknown_case_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--cases", "270m-bf16-1x1"]) == 2
    assert "270m-bf16-1x1" in capsys.readouterr().err
