"""`gemfleet data`: what it prints, writes and imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gemfleet.launcher.cli import app
from gemfleet.train.errors import UserError
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer
from typer.testing import CliRunner

TEXT = "The bank pays interest on what people save, and a bond falls in price when rates rise. "


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_tiny_gemma3(tmp_path / "model")
    tiny_tokenizer(tmp_path / "model")
    return with_rows(tmp_path, "model", [{"prompt": "what is ", "completion": "the cat"}, {"prompt": "alone"}] * 20)


def with_rows(folder: Path, model: str, rows: list[Any]) -> Path:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train = {"model": model, "data": {"train": "rows.jsonl"}}
    (folder / "run.yaml").write_text(json.dumps({"train": train}))
    return folder


def output_of(*arguments: str) -> str:
    return CliRunner().invoke(app, ["data", "run.yaml", *arguments], catch_exceptions=False).stdout


def process(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments, "-m", "gemfleet.launcher.cli", "data", "run.yaml"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.usefixtures("workplace")
def test_without_colours_supervised_text_stands_in_brackets() -> None:
    said = output_of()
    assert "40 read, 20 used, 20 left out" in said
    assert "  <bos>what is ⟦the cat<eos>⟧" in said.splitlines()
    assert "\x1b" not in said


def test_an_output_without_unicode_has_other_brackets(workplace: Path) -> None:
    said = process(workplace, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert "  <bos>what is [[the cat<eos>]]" in said.stdout.splitlines(), said.stderr


def test_json_and_a_page_hold_the_same(workplace: Path) -> None:
    view = json.loads(output_of("--json", "--rows", "10"))
    assert (view["sets"][0]["rows"], view["limit"], view["time"]) == (10, 10, "")
    assert output_of("--html", "page.html") == ""
    assert '"reason":"no completion","count":20' in (workplace / "page.html").read_text()
    row = json.loads(output_of("--row", "2", "--json"))
    assert (row["left_out"], row["tokens"]) == ("no completion", 0)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--html", "gone/page.html"], r"--html is gone/page\.html, which cannot be written \(No such file"),
        (["--html", "page.html", "--row", "1"], "--row shows one row here, and --html .*; leave one of them out"),
    ],
)
def test_a_page_that_cannot_be_written_is_one_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        output_of(*arguments)


@pytest.mark.usefixtures("workplace")
def test_time_is_told_for_gpus_of_the_table_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "by arithmetic, not measured" in json.loads(output_of("--json", "--gpu", "h100"))["time"]
    shared = {"model": "model", "data": {"train": "rows.jsonl"}, "context_parallel": 4}
    Path("run.yaml").write_text(json.dumps({"train": shared}))
    assert " on 4 x " in json.loads(output_of("--json", "--gpu", "h100"))["time"]
    with pytest.raises(UserError, match="--gpu is 'abacus'"):
        output_of("--gpu", "abacus")
    monkeypatch.setenv("PATH", "/nowhere")
    assert json.loads(output_of("--json"))["time"].startswith("not known: the plan knows no speed of CPUs")


@pytest.mark.parametrize(("gpu", "said"), [("NVIDIA H100 80GB HBM3", " on 2 x h100, "), ("Abacus 9", "not known: ")])
def test_time_is_told_for_the_gpus_of_this_machine(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, gpu: str, said: str
) -> None:
    program = workplace / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{gpu}, 81559 MiB'\necho '{gpu}, 81559 MiB'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/bin:/usr/bin")
    assert said in json.loads(output_of("--json"))["time"]


@pytest.mark.usefixtures("workplace")
def test_a_dry_run_shows_the_first_rows() -> None:
    arguments = ["train", "run.yaml", "--dry-run"]
    said = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "rows         of all 40 rows 20 are used and 20 left out (20 no completion" in said
    assert "  <bos>what is ⟦the cat<eos>⟧" in said.splitlines()
    told = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).output
    assert json.loads(told)["data"]["sets"][0]["examples"] == 18


@pytest.mark.slow
def test_a_thousand_rows_of_the_real_tokenizer_need_no_torch(tmp_path: Path, demo_model: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT * 3}]}] * 1000
    said = process(with_rows(tmp_path, str(demo_model), rows), "-X", "importtime", PATH="/nowhere")
    assert "1,000 read, 1,000 used" in said.stdout
    imported = {line.rpartition("|")[2].strip() for line in said.stderr.splitlines() if line.startswith("import time:")}
    assert imported.isdisjoint({"torch", "ray", "datasets"})  # torch alone takes more than a second
