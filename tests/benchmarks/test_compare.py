"""What `compare` calls a regression: known changes under known noise, and a build slowed on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemfleet.benchmarks.__main__ import main
from gemfleet.benchmarks.compare.statistics import judge, taken_in_turn
from gemfleet.benchmarks.compare.suite import matched
from gemfleet.benchmarks.shared.record import Record, Run, write_case
from gemfleet.benchmarks.training.case import SLOW_DOWN_VARIABLE

RUNS, STEPS = 6, 12


def record(slower: float = 1.0, seed: int = 0, second: int = 0, **parts: Any) -> Record:
    """Steps of 0.5 s a run, 5% noise between rounds, 5% between steps, now and then one held up threefold.

    second: within each round's ten when the run began. Noise of a round is shared by builds of the same `seed` // 100.
    """
    shared = np.random.default_rng(seed // 100).normal(0, 0.05, RUNS)
    own = np.random.default_rng(seed)
    runs = []
    for repeat in range(RUNS):
        steps = 0.5 * slower * np.exp(shared[repeat] + own.normal(0, 0.01) + own.normal(0, 0.05, STEPS + 1))
        steps[own.random(STEPS + 1) < 0.05] *= 3
        began = f"2026-01-01T00:{repeat:02d}:{second:02d}+00:00"
        runs.append(Run(repeat=repeat, started_at=began, step_seconds=steps.tolist(), tokens=[64] * (STEPS + 1)))
    facts: dict[str, Any] = {
        "suite": "throughput",
        "case": "tiny",
        "finished_at": "",
        "command": "",
        "git_commit": None,
        "hardware": {"cpu": "a CPU", "cores": 2},
        "versions": {},
        "config": {"model": "tiny"},
        "warmup": 1,
    }
    return Record(**(facts | parts), runs=runs)


@pytest.mark.parametrize(
    ("slower", "outcome"), [(1.10, "regressed"), (1.0, "noise"), (1.02, "noise"), (0.9, "improved")]
)
def test_a_tenth_is_found_and_noise_is_not_in_most_of_many_draws(slower: float, outcome: str) -> None:
    verdicts = [judge(record(seed=100 * n), record(slower, 100 * n + 1, second=30)) for n in range(12)]
    assert all(verdict.paired for verdict in verdicts)
    assert sum(verdict.outcome == outcome for verdict in verdicts) >= 11
    assert np.median([verdict.ratio for verdict in verdicts]) == pytest.approx(slower, abs=0.03)


def test_neighbours_are_compared_only_where_runs_were_taken_in_turn() -> None:
    a = record()
    assert taken_in_turn(a, record(second=30))
    later = record()
    after = [run.model_copy(update={"started_at": run.started_at.replace("T00", "T01")}) for run in later.runs]
    assert not taken_in_turn(a, later.model_copy(update={"runs": after}))
    assert not taken_in_turn(a, later.model_copy(update={"runs": later.runs[:-1]}))


def test_without_turns_a_change_within_the_machines_own_drift_is_noise() -> None:
    """Rounds differ by 5%, each build has its own: a tenth is too close to call, half as much again is not."""
    drift = [judge(record(seed=100 * n), record(1.03, 100 * n + 5100), threshold=0.0) for n in range(8)]
    assert sum(verdict.outcome == "noise" for verdict in drift) >= 6
    assert judge(record(), record(1.5, 7700)).outcome == "regressed"


def test_what_was_measured_otherwise_is_not_compared() -> None:
    a = record()
    others = {
        "another configuration": record(config={"model": "270m"}),
        "another machine": record(hardware={"cpu": "another", "cores": 2}),
        "no step times": record().model_copy(update={"runs": []}),
    }
    for reason, b in others.items():
        pairs, alone = matched([a], [b])
        assert pairs == []
        assert reason in alone["throughput tiny"]
    assert matched([a], [record(case="large")])[1] == {"throughput tiny": "only in A", "throughput large": "only in B"}


def test_the_exit_code_tells_of_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, slower, second in (("a", 1.0, 0), ("same", 1.0, 30), ("slow", 1.2, 30)):
        write_case(record(slower, seed=second, second=second), tmp_path / name)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "same")]) == 0
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "slow")]) == 1
    verdict = json.loads(capsys.readouterr().out.splitlines()[-1])["verdicts"][0]
    assert verdict["outcome"] == "regressed"
    assert verdict["low"] > 1


def test_records_with_nothing_in_common_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_case(record(), tmp_path / "a")
    write_case(record(case="large"), tmp_path / "b")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "no case with step times in common" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timing
def test_a_build_slowed_by_a_tenth_regresses_and_the_same_build_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real runs in turn on this machine, whatever else it does; rounds are added until the verdicts are in."""
    monkeypatch.setenv("GEMFLEET_HOME", str(tmp_path / "home"))

    def take(name: str, rounds: int, slow_down: float) -> None:
        monkeypatch.setenv(SLOW_DOWN_VARIABLE, str(slow_down))
        quick = ("throughput", "--models", "tiny", "--precisions", "fp32", "--lengths", "512", "--micro", "1")
        more = ("--checkpointing", "off", "--steps", "24", "--warmup", "3", "--save-every", "0", "--threads", "1")
        assert main([*quick, *more, "--repeat", str(rounds), "--out", str(tmp_path / name)]) == 0

    def verdict(name: str) -> int:
        return main(["compare", str(tmp_path / "a"), str(tmp_path / name)])

    for rounds in range(1, 9):
        # Turned around in every other round, and the slow build next to A as the equal one is.
        for name, slow_down in (("same", 0.0), ("a", 0.0), ("slow", 0.1))[:: -1 if rounds % 2 else 1]:
            take(name, rounds, slow_down)
        if rounds >= 3 and (verdict("same"), verdict("slow")) == (0, 1):
            return
    pytest.fail("the verdicts on the slowed and on the equal build were not in after 8 rounds")
