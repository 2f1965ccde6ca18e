"""The metrics page, and the files in docs/ that stand on it."""

from __future__ import annotations

import json
import re
import time

import pytest
import yaml
from gemfleet.cluster.registry.registry_reader import RegistryReader
from gemfleet.launcher.api import totals
from prometheus_client.parser import text_string_to_metric_families
from support.places import REPOSITORY
from support.servers.api_live import Live, step_record

MONITORING = REPOSITORY / "docs" / "monitoring"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape waits for its sums, however busy the machine is."""
    monkeypatch.setattr(totals, "SCRAPE_SECONDS", 60.0)


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


def told(live: Live, name: str) -> dict[str, float]:
    """By run."""
    families = {f.name: f for f in text_string_to_metric_families(live.client.get("/metrics").text)}
    return {sample.labels["run"]: sample.value for sample in families[name].samples}


def test_sums_grow_by_what_is_new_and_count_a_step_trained_again_once(live: Live) -> None:
    assert told(live, "gemfleet_tokens")["alpha-2"] == 300
    live.registry.add_metrics("alpha-2", [{**step_record(3), "tokens": 150}, step_record(4)])
    live.registry.add_event("alpha-2", "checkpoint_failed", "lost")
    assert told(live, "gemfleet_tokens")["alpha-2"] == 450
    assert told(live, "gemfleet_training_seconds")["alpha-2"] == 2.0
    assert told(live, "gemfleet_checkpoints_failed")["alpha-2"] == 1


def test_a_scrape_reads_only_what_is_new(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    live.registry.add_metrics("alpha-2", [step_record(step) for step in range(4, 5000)])
    assert told(live, "gemfleet_tokens")["alpha-2"] == 499_900
    asked: list[str] = []
    real = RegistryReader.steps_total

    def steps_total(reader: RegistryReader, run_id: str, since: int, below: int) -> tuple[float, float]:
        asked.append(run_id)
        return real(reader, run_id, since, below)

    monkeypatch.setattr(RegistryReader, "steps_total", steps_total)
    told(live, "gemfleet_tokens")
    assert asked == []
    live.registry.add_metrics("alpha-2", [step_record(5000)])
    assert told(live, "gemfleet_tokens")["alpha-2"] == 500_000
    assert asked == ["alpha-2"]


def test_a_long_history_is_summed_beside_the_scrapes(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is, the counter is not there: one that is too small would look like a restart."""
    monkeypatch.setattr(totals, "SCRAPE_SECONDS", 0.0)
    live.registry.add_metrics("alpha-2", [step_record(step) for step in range(4, 20_000)])
    seen = [told(live, "gemfleet_tokens").get("alpha-2")]
    deadline = time.monotonic() + 20
    while seen[-1] is None and time.monotonic() < deadline:
        time.sleep(0.02)
        seen.append(told(live, "gemfleet_tokens").get("alpha-2"))
    assert seen[0] is None
    assert set(seen[1:]) <= {None, 1_999_900.0}
    assert seen[-1] == 1_999_900
