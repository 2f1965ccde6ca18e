"""The example with pictures, on a small random base: from the charts that it draws to the published result."""

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


@pytest.mark.slow
def test_the_example_with_pictures_runs_from_charts_to_card(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "charts.py"), "charts", "--count", "8", "--base", "tiny"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    changes = ["train.model=tiny", "train.data.train=charts/rows.jsonl", "train.data.eval_fraction=0.25"]
    changes += ["train.batch.global=4", "train.precision=fp32", "predict={max_new_tokens: 4}"]
    changes += ["cluster.workers=2", "output.formats=[merged]", "train.vision.train=projector"]
    with local_ray() as address:
        arguments = [part for change in [*changes, f"cluster.address={address}"] for part in ("--set", change)]
        ends(gemfleet(tmp_path, tmp_path / "home", "train", str(EXAMPLES / "images.yaml"), *arguments))
    registry = RunRegistry(tmp_path / "home" / "gemfleet.db")
    (run,) = registry.list_runs()
    output = tmp_path / "home" / "runs" / run.id / "output"
    steps = registry.metrics(run.id, kind="step")
    assert [step["pictures"] for step in steps] == [4, 4, 4]
    assert {step["tower_flops"] for step in steps} == {0.0}
    answers = prediction_page(output.parent, run.id, 0, 20, differing=False).data
    assert [bool(answer.pictures) for answer in answers] == [True] * 4
    card = (output / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card
    assert "12 pictures" in card
    assert json.loads((output / "adapter_config.json").read_text())["modules_to_save"] == ["multi_modal_projector"]
    assert (output / "merged" / "preprocessor_config.json").is_file()
    assert (output / "comparison.json").is_file()
