"""The result of a run that trains nothing."""

from __future__ import annotations

import json
from pathlib import Path

from gemfleet.launcher.result.publish_evaluation import publish_evaluation
from gemfleet.train.config.schema import TrainConfig

ASKED = TrainConfig.model_validate({"model": "git+https://host/m.git#main", "data": {"train": "rows.jsonl"}})


def test_metrics_answers_request_and_card_are_published_and_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "predictions.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "predictions" / "metrics.json").write_text(json.dumps({"examples": 1, "perplexity": 12.5}))
    (tmp_path / "config.json").write_text('{"experiment_name": "x", "trainer": "sft"}')
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "of-an-earlier-launch").touch()
    facts = {"data": "https://host/d.git", "data_report": "10 rows read."}
    output = publish_evaluation(tmp_path, ASKED, facts)
    assert output == tmp_path / "output"
    assert {path.name for path in output.iterdir()} == {
        *("README.md", ".gitattributes", "cheetah-fine-tuning-config.json", "predictions.jsonl", "metrics.json")
    }
    card = (output / "README.md").read_text()
    assert "| perplexity | 12.5 |" in card
    assert "10 rows read." in card
    assert "Nothing was trained" in card
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
