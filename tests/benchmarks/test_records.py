"""The one format of results: what is written is read back, what is recorded is not measured again."""

from __future__ import annotations

import json
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from gemfleet.benchmarks.shared.machine import command_line
from gemfleet.benchmarks.shared.measuring import Case, Tick, measure_all, schedule
from gemfleet.benchmarks.shared.record import SCHEMA_VERSION, Record, Run, read_record, read_records
from gemfleet.train.errors import UserError
from rich.console import Console
from support.places import RESULTS


class Counting:
    """A suite whose steps take as long as the round's number says; keeps what it was asked to measure."""

    def __init__(self, fails: str = "") -> None:
        self.measured: list[tuple[str, int]] = []
        self._fails = fails

    def measure(self, case: Case, run: Run, tick: Tick) -> None:
        self.measured.append((case.name, run.repeat))
        if self._fails == f"{case.name}{run.repeat}":
            raise KeyboardInterrupt
        run.step_seconds = [9.0, 1.0 + run.repeat]


def measure(suite: Counting, cases: list[Case], repeats: int, folder: Path, again: bool = False) -> list[Record]:
    options = Namespace(repeat=repeats, out=folder, again=again)
    results: dict[str, Any] = {
        "measuring": lambda: nullcontext(suite.measure),
        "results": lambda record: {"runs": len(record.good_runs)},
    }
    return measure_all("counting", cases, **results, options=options, console=Console(quiet=True))


CASES = [Case("a", {"size": 1}, warmup=1), Case("b", {"size": 2}, warmup=1)]


def test_a_record_says_what_is_needed_to_take_it_again(tmp_path: Path) -> None:
    measure(Counting(), CASES, 2, tmp_path)
    found = json.loads((tmp_path / "counting-a.json").read_text())
    assert found["schema_version"] == SCHEMA_VERSION
    for part in ("command", "git_commit", "hardware", "versions", "config", "runs"):
        assert found[part], part
    assert found["hardware"]["cpu"]
    assert found["versions"]["torch"]
    assert [run["step_seconds"] for run in found["runs"]] == [[9.0, 1.0], [9.0, 2.0]]
    assert read_record(tmp_path / "counting-a.json").measured_seconds() == [[1.0], [2.0]]


def test_cases_alternate_and_turn_around() -> None:
    assert [(repeat, case.name) for repeat, case in schedule(CASES, 3)] == [
        *((0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b"))
    ]


def test_an_interrupted_suite_goes_on_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure(Counting(fails="b1"), CASES, 2, tmp_path)
    again = Counting()
    records = measure(again, CASES, 2, tmp_path)
    assert again.measured == [("b", 1), ("a", 1)]
    assert [record.results for record in records] == [{"runs": 2}, {"runs": 2}]


def test_more_rounds_are_added_and_again_begins_anew(tmp_path: Path) -> None:
    measure(Counting(), CASES, 1, tmp_path)
    more, anew = Counting(), Counting()
    measure(more, CASES, 2, tmp_path)
    assert more.measured == [("b", 1), ("a", 1)]
    measure(anew, CASES, 2, tmp_path, again=True)
    assert len(anew.measured) == 4


def changed(**parts: Any) -> Any:
    return lambda found: found | parts


@pytest.mark.parametrize(
    "change",
    [
        changed(config={"size": 9}),
        changed(git_commit="another"),
        changed(versions={"torch": "1.0"}),
        lambda found: found | {"hardware": found["hardware"] | {"cpu": "another"}},
        lambda found: found | {"runs": [run | {"error": "it died"} for run in found["runs"]]},
    ],
    ids=["configuration", "source", "versions", "machine", "failed"],
)
def test_what_was_measured_otherwise_is_measured_anew(change: Any, tmp_path: Path) -> None:
    measure(Counting(), CASES[:1], 1, tmp_path)
    path = tmp_path / "counting-a.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    again = Counting()
    measure(again, CASES[:1], 1, tmp_path)
    assert again.measured == [("a", 0)]


def test_every_committed_record_can_be_read_and_names_no_folder_of_its_machine() -> None:
    records = read_records(RESULTS)
    assert {"api", "checkpoint", "peers", "plan"} <= {record.suite for record in records}
    assert all(not word.startswith("/") for record in records for word in record.command.split())


def test_a_file_of_another_schema_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"schema_version": 1}')
    with pytest.raises(UserError, match=r"old.json is no benchmark record of schema 2.*measure again"):
        read_records(tmp_path)
    (tmp_path / "old.json").unlink()
    with pytest.raises(UserError, match="no benchmark records"):
        read_records(tmp_path)


def test_a_recorded_command_names_no_folder_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["bench", "plan", "--out", "/some/where", "--model=/other/gemma", "--cases", "270m-bf16-512x2", "a/b"]
    monkeypatch.setattr("sys.argv", given)
    assert command_line() == "python -m benchmarks plan --out where --model=gemma --cases 270m-bf16-512x2 a/b"
