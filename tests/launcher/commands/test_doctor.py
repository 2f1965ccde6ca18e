"""`gemfleet doctor` on one machine: a local Ray, examined in full."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_run import gemfleet, local_ray


@pytest.mark.slow
def test_the_doctor_examines_a_local_cluster(tmp_path: Path) -> None:
    """Every group of checks answers; the model that a configuration names is looked for, too."""
    home = tmp_path / "home"
    home.mkdir()
    config = tmp_path / "run.yaml"
    with local_ray(cpus=2) as address:
        text = f"train: {{model: ./absent, data: {{train: demo}}}}\ncluster: {{address: '{address}'}}\n"
        config.write_text(text)
        done = gemfleet(tmp_path, home, "doctor", "run.yaml", "--json")
        output, _ = done.communicate(timeout=300)
    findings = json.JSONDecoder().raw_decode(output[output.index("[\n") :])[0]
    by_check = {finding["check"]: finding for finding in findings}
    assert {"versions", "gpus", "space", "limits", "interface", "token", "clock", "model"} <= by_check.keys(), output
    assert by_check["all-reduce"]["level"] == "pass"
    assert "1 ranks, 16 MiB" in by_check["all-reduce"]["figure"]
    assert "MiB/s (16 MiB in" in by_check["checkpoint store"]["figure"]
    assert by_check["model"]["level"] == "fail"
    assert "absent does not exist" in by_check["model"]["figure"]
    assert done.returncode == 1
    assert not list((home / "cache").glob("doctor-*"))
