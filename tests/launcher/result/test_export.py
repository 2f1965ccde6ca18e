"""A checkpoint out of a run's folder, through the real command line: verified, copied, exported, merged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gemfleet.cluster.checkpoint_store.commit import CheckpointDisk
from gemfleet.cluster.checkpoint_store.manifest import FileEntry, Manifest
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.launcher.cli import app, main
from gemfleet.launcher.result.again import keep
from gemfleet.train.checkpoint.lineage import base_digest
from gemfleet.train.checkpoint.state import CHECKPOINT_FILES
from gemfleet.train.config.schema import TrainConfig
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer
from typer.testing import CliRunner

LOSSES = {4: 1.5, 8: 2.0}


def commit(disk: CheckpointDisk, step: int, files: dict[str, bytes]) -> None:
    entries = []
    for name, content in files.items():
        entries.append(FileEntry(name, len(content), hashlib.sha256(content).hexdigest()))
        disk.begin(step, disk.generation, name)
        disk.write(step, disk.generation, name, 0, np.frombuffer(content, dtype=np.uint8))
        disk.finish(step, disk.generation, entries[-1])
    assert disk.declare(step, disk.generation, 0, entries, [0], {"eval_loss": LOSSES[step]}) is not None


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was interrupted after two checkpoints of a real adapter; its model lies where it was launched."""
    from gemfleet.train.config.sections.recipe import LoraConfig
    from gemfleet.train.model.gemma import attach_lora
    from support.tiny_model import tiny_gemma3

    monkeypatch.setenv("GEMFLEET_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)  # `resume` goes to where the run was launched
    work = tmp_path / "work"
    save_tiny_gemma3(work / "model")
    tiny_tokenizer(work / "model")
    model = attach_lora(tiny_gemma3().requires_grad_(False), LoraConfig(r=4), 1, "model")
    for parameter in model.adapter_parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    model.peft_model.save_pretrained(tmp_path / "adapter")
    files = dict.fromkeys(CHECKPOINT_FILES, b"{}")
    (work / "rows.jsonl").write_text('{"text": "a cat"}\n')
    made = TrainConfig.model_validate({"model": "./model", "data": {"train": "rows.jsonl"}})
    written = {
        "train": made.model_dump(mode="json", by_alias=True),
        "versions": {},
        "made_from": {"base": base_digest(work / "model")},
    }
    files["training_config.json"] = json.dumps(written).encode()
    files |= {name: (tmp_path / "adapter" / name).read_bytes() for name in CHECKPOINT_FILES[:2]}
    folder = tmp_path / "home" / "runs" / "one-1"
    disk = CheckpointDisk(folder / "checkpoints")
    disk.begin_attempt()
    history = [{"step": step, "epoch": 1.0, "loss": loss, "eval_loss": loss} for step, loss in LOSSES.items()]
    for step in LOSSES:
        state = {"log_history": history[: step // 4], "global_step": step, "max_steps": 8, "epoch": 1.0}
        files["trainer_state.json"] = json.dumps({**state, "num_input_tokens_seen": 7}).encode()
        commit(disk, step, files)
    (folder / "config.resolved.yaml").write_text("train: {model: ./model, data: {train: rows.jsonl}}\n")
    (folder / "working_directory").write_text(f"{work}\n")
    registry = RunRegistry(tmp_path / "home" / "gemfleet.db")
    registry.create_run("one-1", "one", "{}")
    registry.transition("one-1", RunState.INTERRUPTED)
    return folder


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["gemfleet", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    return capsys.readouterr().err


def damage(folder: Path, step: int) -> None:
    path = folder / "checkpoints" / f"checkpoint-{step}" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_verify_names_what_is_damaged(run_folder: Path) -> None:
    assert run("checkpoints", "latest", "verify").count("whole") == 2
    damage(run_folder, 8)
    verdicts = json.loads(run("checkpoints", "latest", "verify", "--json", code=1))
    assert [verdict["checkpoint"] for verdict in verdicts] == ["checkpoint-4", "checkpoint-8"]
    assert verdicts[0]["problem"] is None
    assert "adapter_model.safetensors is damaged" in verdicts[1]["problem"]
    start = json.loads(run("resume", "latest", "--dry-run", "--json"))
    assert start["step"] == 4
    assert "checkpoint-8" in start["damaged"][0]


def test_a_dry_run_of_resuming_says_what_would_be_refused(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*more: str) -> str:
        return fails(monkeypatch, capsys, "resume", "latest", "--dry-run", *more)

    assert "train.lora.r is 8, but the checkpoint checkpoint-8 was written with 16" in refused(
        "--set", "train.lora.r=8"
    )
    assert "train.lora.alpha is 1.0, it was 32.0" in refused("--set", "train.lora.alpha=1.0")
    assert "gone.jsonl does not exist" in refused("--set", "train.data.train=./gone.jsonl")
    accepted = ("--accept-changes", "--set", "train.lora.alpha=1.0")
    assert json.loads(run("resume", "latest", "--dry-run", "--json", *accepted))["step"] == 8


def test_pull_copies_a_whole_checkpoint_once(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("checkpoints", "latest", "pull", "8", str(tmp_path / "copy"))
    Manifest.read(tmp_path / "copy").verify(tmp_path / "copy")
    assert "exists already" in fails(monkeypatch, capsys, "checkpoints", "latest", "pull", "8", str(tmp_path / "copy"))
    assert "it has: 4, 8" in fails(monkeypatch, capsys, "checkpoints", "latest", "pull", "5", str(tmp_path / "other"))
    assert "STEP" in fails(monkeypatch, capsys, "checkpoints", "latest", "pull")
    damage(run_folder, 8)
    assert "is damaged" in fails(monkeypatch, capsys, "checkpoints", "latest", "pull", "8", str(tmp_path / "other"))
    assert json.loads(run("checkpoints", "latest", "pull", "latest", str(tmp_path / "other"), "--json"))["step"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "copy", "home", "other", "work"]


@pytest.mark.slow
def test_the_merged_model_computes_what_base_and_adapter_do(run_folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run("checkpoints", "latest", "export", "latest", str(tmp_path / "adapter-out"))
    run("checkpoints", "latest", "export", "8", str(tmp_path / "merged"), "--format", "merged")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "work" / "model", dtype=torch.float32)
    tokens = torch.arange(3, 20).unsqueeze(0)
    plain = base(tokens).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter-out").eval()(tokens).logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()(tokens).logits
    assert float((adapted - plain).detach().abs().max()) > 0.01
    torch.testing.assert_close(merged, adapted, rtol=1e-3, atol=1e-3)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_prune_removes_nothing_unasked_and_never_the_newest_checkpoint(run_folder: Path) -> None:
    registry = RunRegistry(run_folder.parent.parent / "gemfleet.db")
    damage(run_folder, 8)
    assert "would be removed" in run("prune", "--keep", "0", "--checkpoints-only")
    assert len(list(run_folder.glob("checkpoints/checkpoint-*"))) == 2
    run("prune", "--keep", "0", "--checkpoints-only", "--yes")
    assert [path.name for path in run_folder.glob("checkpoints/checkpoint-*")] == ["checkpoint-4"]
    assert json.loads(run("prune", "--keep", "1", "--yes", "--json")) == []
    assert json.loads(run("prune", "--keep", "0", "--older-than", "1", "--yes", "--json")) == []
    registry.create_run("two-2", "two", "{}")
    (entry,) = json.loads(run("prune", "--keep", "0", "--yes", "--json"))  # the other one has not ended
    assert entry["run"] == "one-1"
    assert not run_folder.exists()
    assert [found.id for found in registry.list_runs()] == ["two-2"]


def test_any_whole_checkpoint_is_published_without_a_cluster(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run failed after training, as where its delivery was refused."""
    keep(run_folder, {"facts": {"ranks": "two ranks", "data": "rows.jsonl"}, "predicted": 4})
    (run_folder / "predictions").mkdir()
    (run_folder / "predictions" / "metrics.json").write_text('{"chrf": 12.5}')
    answer = json.loads(run("publish", "latest", "--json"))
    assert (answer["step"], answer["eval_loss"]) == (4, 1.5)
    card = (run_folder / "output" / "README.md").read_text()
    assert "Published is step 4 of 8: lowest evaluation loss 1.5000 (last: 2.0000 at step 8)." in card
    assert "| step 4, evaluation (published) | 1.5000 |" in card
    assert "two ranks" in card
    assert "chrf" in card
    state = json.loads((run_folder / "output" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"]] == [4, 8]
    assert "published: step 4" in (run_folder / "output" / "loss.svg").read_text()

    said = run("publish", "latest", "--step", "8")
    assert "answers and metrics of the run are of another checkpoint" in said
    assert sorted(path.name for path in (run_folder / "output").glob("checkpoint-*")) == ["checkpoint-8"]
    assert not (run_folder / "output" / "metrics.json").exists()
    assert "published step 8 of 8: as asked" in " ".join(run("show", "latest").split())

    damage(run_folder, 4)
    assert "damaged, passed over: checkpoint-4" in run("publish", "latest")
    assert "--step is 'x'" in fails(monkeypatch, capsys, "publish", "latest", "--step", "x")
    assert "there are: 4, 8" in fails(monkeypatch, capsys, "publish", "latest", "--step", "5")
    other = save_tiny_gemma3(tmp_path / "other", seed=7)
    tiny_tokenizer(other)
    assert "has other weights" in fails(monkeypatch, capsys, "publish", "latest", "--model", str(other))
    assert (run_folder / "output" / "checkpoint-8").is_dir()
