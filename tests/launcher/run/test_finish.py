"""What the card is told: clones go by the name of their repository, figures come from the steps' records."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.placement import Placement
from gemfleet.launcher.result.again import late_facts
from gemfleet.launcher.result.chosen import Chosen, Picked
from gemfleet.launcher.result.compare import CannotCompareError
from gemfleet.launcher.result.public_names import written_names
from gemfleet.launcher.run import finish
from gemfleet.launcher.run.data.tokenise import PreparedData
from gemfleet.launcher.run.finish import Trained, compare_forms, early_facts
from gemfleet.launcher.run.outcome import TrainingFailedError
from gemfleet.launcher.run.prepared import Ground
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.report import DataReport
from gemfleet.train.model.comparison import Comparison, FormComparison


def train(model: str, data: str, held_out: str | None = None) -> TrainConfig:
    return TrainConfig.model_validate({"model": model, "data": {"train": data, "eval": held_out}})


def test_clones_are_written_as_their_repositories() -> None:
    asked = train("git+https://host/m.git#main", "git+https://host/d.git")
    used = train("/cache/m", "/cache/d/train.jsonl", "/cache/d/test.jsonl")
    assert written_names(asked, used) == {
        "/cache/m": "git+https://host/m.git#main",
        "/cache/d/train.jsonl": "git+https://host/d.git",
        "/cache/d/test.jsonl": "git+https://host/d.git",
    }
    local = train("/home/me/m", "demo", "owner/rows")
    assert set(written_names(local, local).items()) == {("/home/me/m", "m")}


def test_facts_name_no_clone_and_take_the_median_rate() -> None:
    nothing: Any = None
    report = DataReport("/cache/d", rows=5, examples=5)
    data = PreparedData(nothing, nothing, nothing, {}, report, (), ())
    ground = Ground(Placement(2, 1.0, 0, "PACK"), Path("m"), {}, data, nothing)
    asked = train("demo", "git+https://host/d.git")
    steps = [{"tokens_per_second": rate} for rate in (10.0, 500.0, 20.0)]
    early = early_facts(asked, ground, {"/cache/d": "git+https://host/d.git"})
    assert early["data_report"] == report.summary().replace("/cache/d", "git+https://host/d.git")
    late = late_facts(steps, "A CPU", "succeeded")
    assert (late["device"], late["tokens_per_second"], late["state"]) == ("A CPU", 20.0, "succeeded")
    assert late_facts([], None, "failed")["tokens_per_second"] is None


class Told:
    """A run that keeps what it is told."""

    def __init__(self) -> None:
        self.config = LaunchConfig(train=train("demo", "demo"))
        self.id, self.folder = "one-1", Path("one-1")
        self.notes, self.events = list[str](), dict[EventKind, str]()
        self.note, self.tell = self.notes.append, self.events.__setitem__
        self.display = SimpleNamespace(phase=lambda phase: None)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    nothing: Any = None
    monkeypatch.setattr(finish, "wait_for_resources", lambda *arguments: None)
    ground = Ground(Placement(2, 1.0, 0, "PACK"), Path("m"), {}, nothing, nothing)
    picked = Picked(Chosen(1, None, "step 1"), Path("c"), b"{}")
    return Trained(train("demo", "demo"), picked, ground, {"stopped": False})


def test_a_result_that_is_not_what_was_trained_is_not_published(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Any = Told()
    forms = [FormComparison("adapter", 0.0, 30.0, 0.003, 4, 0.0), FormComparison("merged", 0.5, 30.0, 0.003, 2, 0.2)]
    found = Comparison(4, "the evaluation set", 128, "float32", tuple(forms))
    monkeypatch.setattr(finish, "compare_on_cluster", lambda *arguments: found)
    with pytest.raises(TrainingFailedError) as failed:
        compare_forms(run, trained, Path("output"))
    assert str(failed.value) == (
        "the published merged model computes other logits than the training loop: they differ by up to 0.5, where "
        "rounding explains 0.003; nothing was published, and the checkpoints stay: gemfleet checkpoints one-1"
    )
    assert "merged: logits differ by up to 0.5 of 30, 2 of 4 greedy answers are equal" in run.notes[0]


def test_a_result_that_cannot_be_compared_is_published(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = Told()

    def runs_out(*arguments: object) -> Comparison:
        raise CannotCompareError("memory ran out")

    monkeypatch.setattr(finish, "compare_on_cluster", runs_out)
    assert compare_forms(run, trained, Path("output")) is None
    expected = "the result was not compared with what was trained: memory ran out"
    assert run.events == {EventKind.NOT_COMPARED: expected}
