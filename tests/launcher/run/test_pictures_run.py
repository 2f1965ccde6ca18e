"""The example with pictures, on a small random base: from its charts to the published result, and again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.launcher.api.published import prediction_page
from support.places import EXAMPLES
from support.tiny_run import ends, gemfleet, local_ray


def logs(home: Path, run_id: str) -> str:
    return "".join(path.read_text() for path in (home / "runs" / run_id / "logs").rglob("*") if path.is_file())


@pytest.mark.slow
def test_the_example_with_pictures_runs_from_charts_to_card(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "charts.py"), "charts", "--count", "8", "--base", "tiny"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    changes = [
        "train.model=tiny",
        "train.vision.cache=head",
        "train.batch.global=8",
        "train.precision=fp32",
        "predict={max_new_tokens: 4}",
    ]
    changes += ["cluster.workers=2", "output.formats=[merged]", "train.vision.train=projector"]
    home, example = tmp_path / "home", str(EXAMPLES / "images.yaml")
    with local_ray() as address:
        arguments = [part for change in [*changes, f"cluster.address={address}"] for part in ("--set", change)]
        ends(gemfleet(tmp_path, home, "train", example, *arguments))
        again = [
            "--set",
            "train.optim.learning_rate=0.001",
            "--set",
            "predict=null",
            "--set",
            "output.formats=[adapter]",
        ]
        ends(gemfleet(tmp_path, home, "train", example, *arguments, *again))
    registry = RunRegistry(home / "gemfleet.db")
    second, run = registry.list_runs()
    assert "of this rank's 5, the head had 0" in logs(home, run.id)
    assert "of this rank's 5, the head had 5" in logs(home, second.id)
    assert len(list((home / "cache" / "features").glob("*/*"))) == 10
    output = tmp_path / "home" / "runs" / run.id / "output"
    steps = registry.metrics(run.id, kind="step")
    assert [step["pictures"] for step in steps] == [8, 8, 8]
    assert {step["tower_flops"] for step in steps} == {0.0}
    assert len((output / "predictions.jsonl").read_text().splitlines()) == 6
    answers = prediction_page(output.parent, run.id, 0, 20, differing=False).data
    assert [bool(answer.pictures) for answer in answers] == [True] * 6
    card = (output / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card
    assert "24 pictures" in card
    assert json.loads((output / "adapter_config.json").read_text())["modules_to_save"] == ["multi_modal_projector"]
    assert (output / "merged" / "preprocessor_config.json").is_file()
    assert (output / "comparison.json").is_file()
