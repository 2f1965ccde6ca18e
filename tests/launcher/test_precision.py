"""fp16 is never trained in, and whoever asks for it is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gemfleet.launcher.cli import app
from gemfleet.launcher.config_file import dump_config, load_config
from gemfleet.train.config import Precision
from gemfleet.train.device import DeviceFacts, choose_dtype
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
