"""The metrics page, and the files in docs/ that stand on it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from api_live import Live
from prometheus_client.parser import text_string_to_metric_families

MONITORING = Path(__file__).resolve().parents[3] / "docs" / "monitoring"


def test_names_units_and_labels_follow_the_conventions(live: Live) -> None:
    families = {f.name: f for f in text_string_to_metric_families(live.client.get("/metrics").text)}
    assert families
    for name, family in families.items():
        assert name.startswith("gemfleet_")
        assert family.documentation.endswith(".")
        assert not re.search(r"_(ms|mb|gb|percent|kib)$", name)
        for sample in family.samples:
            assert set(sample.labels) <= {"run", "state", "rank"}
            if family.type == "counter":
                assert sample.name.endswith("_total")
    assert {s.labels["run"] for s in families["gemfleet_loss"].samples} == {"alpha-1", "alpha-2"}
    memory = {(s.labels["run"], s.labels["rank"]): s.value for s in families["gemfleet_gpu_memory_bytes"].samples}
    assert memory[("alpha-2", "1")] == 9e8
    assert {s.labels["rank"] for s in families["gemfleet_gpu_utilisation_ratio"].samples} == {"0"}
    assert max(sample.value for sample in families["gemfleet_training_seconds"].samples) == 4.0
    saved = {"saved": 2.0, "saved_bytes": 6018.0, "saved_seconds": 0.5, "failed": 1.0}
    for name, value in saved.items():
        assert {s.labels["run"]: s.value for s in families[f"gemfleet_checkpoints_{name}"].samples}["alpha-1"] == value
    assert [s.value for s in families["gemfleet_checkpoint_seconds"].samples] == [0.25]


def test_the_grafana_dashboard_asks_for_what_there_is(live: Live) -> None:
    told = {line.split()[2] for line in live.client.get("/metrics").text.splitlines() if line.startswith("# TYPE")}
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    asked = {name for panel in panels for t in panel["targets"] for name in re.findall(r"gemfleet_\w+", t["expr"])}
    assert asked
    assert asked <= told
    scraped = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"][0]
    assert live.client.get(scraped["metrics_path"]).status_code == 200
