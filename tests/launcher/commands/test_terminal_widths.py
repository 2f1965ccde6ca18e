"""What `plan`, `watch`, `runs` and `train` look like on terminals of 80 and of 120 columns."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.api.schemas import CheckpointTotals, Progress, Rank, RunDetail, Throughput
from gemfleet.launcher.cli import app
from gemfleet.launcher.commands.launch_here import _print_outcome
from gemfleet.launcher.commands.watch import view
from gemfleet.launcher.display import LiveDisplay, run_facts, training_facts
from gemfleet.launcher.run.outcome import Outcome
from gemfleet.launcher.runs.registry import registry_of
from rich.console import Console
from support.servers.api_live import add_sweep
from support.terminal_pictures import check_snapshot, plain, terminal_environment
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer
from typer.testing import CliRunner

pytestmark = pytest.mark.parametrize("width", [80, 120])
RUN_ID = "finance-questions-20260102-030405-1a2b"
FACTS = {"epoch": 1.987, "epochs": 2.0, "loss": 1.8341, "tokens_per_second": 151_212.4, "seconds_left": 11_085.0}


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def output_of(width: int, *arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env=terminal_environment(width), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, no_color=True, width=width)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_sweep(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMFLEET_HOME", str(tmp_path))
    add_sweep(registry_of(tmp_path), tmp_path)
    check_snapshot("sweep", output_of(width, "show", "lr"), width)


def test_plan(width: int) -> None:
    check_snapshot("plan", output_of(width, "plan", "--model", "27b", "--gpus", "64", "--gpu", "h100"), width)


def test_plan_without_room(width: int) -> None:
    check_snapshot("plan-refused", output_of(width, "plan", "--model", "27b", "--gpu", "rtx4090"), width)


def detail(total: int) -> RunDetail:
    ranks = [
        Rank(rank=n, node="ab" * 28, address=f"10.123.100.{n}", pid=1_000_000 + n, heartbeat_at=0.0,
             heartbeat_age_seconds=2.0)
        for n in (0, 1)
    ]  # fmt: skip
    return RunDetail(
        id=RUN_ID,
        name="finance-questions",
        status=RunState.TRAINING,
        created_at=0,
        updated_at=0,
        stop_requested=False,
        progress=Progress(step=15, total_steps=total, epoch=0.07, epochs=2.0, fraction=15 / total, eta_seconds=3723.0),
        loss=1.8342,
        eval_loss=1.9021,
        throughput=Throughput.model_validate({"tokens_per_second": 151_212.4, "peak_memory_bytes": 10**11}),
        waiting_for="the cluster has room for 2 of 8 ranks with 1 GPU each; 6 more are taken by the run before it",
        ranks=ranks,
        checkpoint_totals=CheckpointTotals(saved=0, failed=0, bytes=0, seconds=0.0),
        restarts=1,
        events_url="",
        metrics_url="",
        checkpoints_url="",
    )


def test_watch(width: int) -> None:
    console = terminal(width)
    console.print(view(detail(460)))
    check_snapshot("watch", shown(console), width)


@pytest.mark.parametrize("total", [46, 460, 1_000_000])
def test_watch_shows_every_figure_whole(width: int, total: int) -> None:
    console = terminal(width)
    console.print(view(detail(total)))
    assert f"15 of {total}" in [" ".join(line.split()[1:]) for line in plain(shown(console)).splitlines()]


def test_data(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_gemma3(tmp_path / "model")
    tiny_tokenizer(tmp_path / "model")
    rows = [{"prompt": f"what is {i} ", "completion": "the cat sat " * (1 + i % 13)} for i in range(90)]
    lines = [*map(json.dumps, rows), "{broken", '{"prompt": "alone"}', json.dumps({**rows[0], "score": 1})]
    (tmp_path / "a-file-of-quite-a-long-name.jsonl").write_text("\n".join(lines))
    (tmp_path / "prose.jsonl").write_text('{"text": "the answer to the question"}\n' * 9)
    monkeypatch.chdir(tmp_path)
    config = {
        "model": "model",
        "data": {"train": ["a-file-of-quite-a-long-name.jsonl", "prose.jsonl"], "max_length": 64},
    }
    (tmp_path / "run.yaml").write_text(json.dumps({"train": config, "cluster": {"address": "10.0.0.1:6379"}}))
    check_snapshot("data", output_of(width, "data", "run.yaml", "--examples", "1"), width)


def test_runs(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMFLEET_HOME", str(tmp_path))
    registry = registry_of(tmp_path)
    names = (RUN_ID, "demo-1", "x" * 64)
    for name, state in zip(names, (RunState.FINDING_BATCH, RunState.SUCCEEDED, RunState.INTERRUPTED), strict=True):
        registry.create_run(name, "demo", "{}", os.getpid())
        steps = [{"kind": "step", "step": n, "total_steps": 1_000_000, "loss": 12.5 - n} for n in (1, 2)]
        registry.add_metrics(name, steps)
        registry.transition(name, state)
    with sqlite3.connect(tmp_path / "gemfleet.db") as db:
        db.execute("UPDATE runs SET created_at = 1767323045")
    check_snapshot("runs", output_of(width, "runs"), width)


def test_train(width: int) -> None:
    """The bars while it trains, and once training is over."""
    console = terminal(width)
    display = LiveDisplay(console, clock=lambda: 100.0)
    assert display.bars is not None
    display.bars.stop()
    display.phase("preparing data")
    task = display.bars.add_task("Tokenising a-file-of-quite-a-long-name-in-a-deep-folder.jsonl", total=1_000_000)
    display.bars.update(task, completed=1_000_000)
    display.phase("training")
    pictures = terminal(width)
    display.advance(997_123, 1_000_000, training_facts(FACTS, {"eval_loss": 1.9}))
    pictures.print(display.bars)
    figures = {"loss": 1.9, "tokens_per_second": 150_000.0}
    display.advance(1_000_000, 1_000_000, run_facts(figures, {"eval_loss": 1.9}))
    display.phase("publishing")
    pictures.print(display.bars)
    check_snapshot("train", shown(pictures), width)


def test_the_end_of_train(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in terminal_environment(width).items():
        monkeypatch.setenv(name, value)
    figures = {"loss": 1.91234, "tokens_per_second": 151_212.4}
    result = {"steps": 460, "total_steps": 460, "eval_loss": 1.9, "eval_loss_before": 6.2, "figures": figures}
    _print_outcome(Outcome(RUN_ID, RunState.SUCCEEDED, Path("/runs/a/output"), False, result), False)
    check_snapshot("train-end", capsys.readouterr().out, width)


def test_a_dry_run_breaks_lines_between_words(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMFLEET_HOME", str(tmp_path))
    save_tiny_gemma3(tmp_path / "model")
    tiny_tokenizer(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"text": "what"}\n')
    (tmp_path / "run.yaml").write_text("train: {model: model, data: {train: rows.jsonl}}\n")
    monkeypatch.chdir(tmp_path)  # relative paths: the lines are the command's own words
    lines = plain(output_of(width, "train", str(tmp_path / "run.yaml"), "--dry-run")).splitlines()
    facts = lines[lines.index(next(line for line in lines if line.startswith("model   "))) :]
    assert len(facts) >= 12
    assert max(map(len, facts)) <= width
