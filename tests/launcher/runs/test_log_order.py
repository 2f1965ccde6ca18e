"""Lines of the driver and of the ranks, in the order in which they were written."""

from __future__ import annotations

import time
from pathlib import Path

from gemfleet.launcher.cli import app
from gemfleet.launcher.runs.log_order import by_time, log_stamp
from typer.testing import CliRunner

DAY = "2026-11-28"
DRIVER = [f"{DAY} 10:00:00,100 run begins", f"{DAY} 10:00:05,000 ends"]
RANK_0 = [f"{DAY} 10:00:01,500 INFO a: step 1", "Traceback", "  line", f"{DAY} 10:00:03,000 INFO a: step 2"]
RANK_1 = ["a line before any time", f"{DAY} 10:00:01,200 INFO a: step 1", f"{DAY} 10:00:04 INFO a: step 2"]


def files(**lines: list[str]) -> list[tuple[str, str]]:
    return [(source, line) for source, texts in lines.items() for line in texts]


def test_lines_of_all_are_one_story() -> None:
    told = list(by_time(files(driver=DRIVER, rank_0=RANK_0, rank_1=RANK_1)))
    assert [line for _, line in told] == [
        *(DRIVER[0], RANK_1[0], RANK_1[1], *RANK_0[:3], RANK_0[3], RANK_1[2], DRIVER[1]),
    ]
    assert told[1][0] == "rank_1"


def test_an_order_within_a_file_is_never_changed() -> None:
    set_back = [f"{DAY} 10:00:09 a", f"{DAY} 10:00:02 b", f"{DAY} 10:00:03 c"]
    told = [line for source, line in by_time(files(x=set_back, y=[f"{DAY} 10:00:05 d"])) if source == "x"]
    assert told == set_back
    assert list(by_time(files(x=["b", "a"], y=["c"]))) == files(x=["b", "a"], y=["c"])
    assert list(by_time([])) == []


def test_the_drivers_stamp_is_as_fine_as_the_ranks() -> None:
    noon = time.mktime((2026, 11, 28, 12, 0, 0, 0, 0, -1))
    assert log_stamp(noon + 0.0625) == "2026-11-28 12:00:00,062"


def test_the_command_shows_them_so(tmp_path: Path) -> None:
    from gemfleet.cluster.registry.run_registry import RunRegistry, RunState

    registry = RunRegistry(tmp_path / "gemfleet.db")
    registry.create_run("alpha-1", "alpha", "{}")
    registry.transition("alpha-1", RunState.FAILED)
    logs = tmp_path / "runs" / "alpha-1" / "logs"
    logs.mkdir(parents=True)
    for name, lines in (("driver", DRIVER), ("rank-0", RANK_0), ("rank-1", RANK_1[1:])):
        (logs / f"{name}.log").write_text("".join(f"{line}\n" for line in lines))
    expected = ["driver", "rank-1", "rank-0", "rank-0", "rank-0", "rank-0", "rank-1", "driver"]
    for follow in ((), ("--follow",)):
        arguments = ["logs", "alpha-1", *follow]
        result = CliRunner().invoke(app, arguments, env={"GEMFLEET_HOME": str(tmp_path)}, catch_exceptions=False)
        assert [line.split()[0] for line in result.output.splitlines()] == expected
