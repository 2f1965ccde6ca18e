"""fp16 is never trained in, and whoever asks for it is told."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from gemfleet.cluster.registry.registry_reader import RegistryReader
from gemfleet.launcher.api.views import run_detail
from gemfleet.launcher.cli import app
from gemfleet.launcher.config.load import dump_config, load_config
from gemfleet.launcher.display import PlainDisplay
from gemfleet.launcher.run.launch import tell_what_differs
from gemfleet.launcher.run.session import RunSession
from gemfleet.train.config.schema import Precision
from gemfleet.train.device.abilities import DeviceFacts, choose_dtype
from typer.testing import CliRunner


@pytest.mark.parametrize(
    ("precision", "with_bf16", "without"),
    [
        ("auto", torch.bfloat16, torch.float32),
        ("fp16", torch.bfloat16, torch.float32),
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("fp32", torch.float32, torch.float32),
    ],
)
def test_what_is_computed_in(precision: Precision, with_bf16: torch.dtype, without: torch.dtype) -> None:
    cpu = torch.device("cpu")
    assert choose_dtype(precision, DeviceFacts(cpu, "a CPU", bf16_gains=True)) == with_bf16
    assert choose_dtype(precision, DeviceFacts(cpu, "a CPU", bf16_gains=False)) == without


@pytest.fixture
def asked_for_fp16(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("train: {model: demo, data: {train: demo}, precision: fp16}\n")
    return path


def test_the_resolved_configuration_says_so_and_reads_back(asked_for_fp16: Path) -> None:
    config = load_config(asked_for_fp16)
    text = dump_config(config)
    assert text.startswith("# train.precision is fp16")
    assert "answered with bf16" in text.splitlines()[0]
    asked_for_fp16.write_text(text)
    assert load_config(asked_for_fp16) == config


def test_a_dry_run_says_so(asked_for_fp16: Path) -> None:
    plain = CliRunner().invoke(app, ["train", str(asked_for_fp16), "--dry-run"])
    assert plain.exit_code == 0
    assert "answered with bf16" in plain.output
    plan = json.loads(CliRunner().invoke(app, ["train", str(asked_for_fp16), "--dry-run", "--json"]).output)["plan"]
    assert plan["precision"] == "bf16 where the hardware gains from it, else fp32 (fp16 was asked for)"


def test_a_run_says_so_in_show_and_in_the_api(asked_for_fp16: Path, gemfleet_home: Path) -> None:
    run = RunSession(load_config(asked_for_fp16), asked_for_fp16, PlainDisplay(io.StringIO()))
    tell_what_differs(run)
    shown = CliRunner().invoke(app, ["show", run.id, "--json"])
    facts = json.loads(shown.output)
    assert "precision: fp16" in facts["config"]
    ((event,),) = [[e for e in facts["events"] if e["kind"] == "precision"]]
    assert "answered with bf16" in event["message"]
    reader = RegistryReader(gemfleet_home / "gemfleet.db")
    row = reader.run(run.id)
    assert row is not None
    detail = run_detail(reader, row, run.folder, f"/api/v1/runs/{run.id}")
    assert detail.precision == "bf16 where the hardware gains from it, else fp32 (fp16 was asked for)"
