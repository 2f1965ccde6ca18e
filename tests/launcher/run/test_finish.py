"""What the card is told: clones go by the name of their repository, figures come from the steps' records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemfleet.launcher.placement import Placement
from gemfleet.launcher.result.public_names import written_names
from gemfleet.launcher.run.data.tokenise import PreparedData
from gemfleet.launcher.run.finish import early_facts, late_facts
from gemfleet.launcher.run.prepared import Ground
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.report import DataReport


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
    result: dict[str, Any] = {"device": "A CPU", "stopped": False}
    nothing: Any = None
    report = DataReport("/cache/d", rows=5, examples=5)
    data = PreparedData(nothing, nothing, nothing, {}, report, (), ())
    ground = Ground(Placement(2, 1.0, 0, "PACK"), Path("m"), {}, data, nothing)
    asked = train("demo", "git+https://host/d.git")
    steps = [{"tokens_per_second": rate} for rate in (10.0, 500.0, 20.0)]
    early = early_facts(asked, ground, {"/cache/d": "git+https://host/d.git"})
    assert early["data_report"] == report.summary().replace("/cache/d", "git+https://host/d.git")
    late = late_facts(steps, result)
    assert (late["device"], late["tokens_per_second"], late["state"]) == ("A CPU", 20.0, "succeeded")
    assert late_facts([], result)["tokens_per_second"] is None
