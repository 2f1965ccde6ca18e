"""Where a launch's time goes: phases that add up, read from a registry's events and a rank's log."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from gemfleet.benchmarks.__main__ import main
from gemfleet.benchmarks.launch.suite import LAST, PHASES, START, breakdown, first_line_after
from gemfleet.benchmarks.shared.record import read_records

STARTED = 1000.0


def entered(state: str, at: float) -> dict[str, Any]:
    return {"kind": "state", "time": at, "data": {"state": state}}


EVENTS = [
    entered("training", 900.0),  # of the launch before
    entered("queued", 1002.0),
    {"kind": "waiting", "time": 1002.5, "data": {}},
    entered("preflight", 1004.0),
    entered("staging", 1005.0),
    entered("preparing_data", 1005.5),
    entered("training", 1007.0),
]


def test_phases_add_up_to_the_first_step() -> None:
    found = breakdown(STARTED, EVENTS, ranks_ready=1012.0, first_step=1013.5)
    assert found == {
        START: 2.0,
        PHASES["queued"]: 2.0,
        PHASES["preflight"]: 1.0,
        PHASES["staging"]: 0.5,
        PHASES["preparing_data"]: 1.5,
        PHASES["training"]: 5.0,
        LAST: 1.5,
    }
    assert sum(found.values()) == 13.5


def test_ranks_are_ready_with_their_first_line_of_this_launch(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_text("2026-01-01 10:00:00,500 INFO a: before\nno time\n2026-01-01 10:00:09,250 INFO a: now\n")
    at = datetime(2026, 1, 1, 10, 0, 5).timestamp()
    assert first_line_after(log, at) - at == pytest.approx(4.25)
    with pytest.raises(ValueError, match="no line after the launch"):
        first_line_after(log, at + 60)


@pytest.mark.slow
@pytest.mark.timing
def test_a_launch_and_a_resume_reach_their_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The 25 s of the target are judged on the committed record: a machine under test is rarely idle."""
    assert main(["launch", "--quick", "--out", str(tmp_path)]) == 0
    seconds = json.loads(capsys.readouterr().out.splitlines()[-1])["seconds_to_first_step"]
    for record in read_records(tmp_path):
        phases = record.runs[0].facts["phases"]
        assert sum(phases.values()) == pytest.approx(record.runs[0].step_seconds[0])
        assert min(phases.values()) >= 0
        assert 0 < seconds[record.case] < 300
