"""Nothing that is published names this machine: found by searching every byte of a result."""

from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path

import pytest
import torch
from gemfleet.cluster.registry.run_recorder import RunRecorder
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.launcher.config.schema import OutputConfig
from gemfleet.launcher.result.export import export_adapter, export_merged
from gemfleet.launcher.result.public_names import base_reference, is_hub_id, public_name, renamed, written_names
from gemfleet.launcher.result.publish import Publication, publish
from gemfleet.launcher.result.publish_evaluation import evaluation_card
from gemfleet.train.checkpoint.state import Progress, save_checkpoint
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.recipe import LoraConfig
from gemfleet.train.model.gemma import attach_lora, load_base_model
from gemfleet.train.step.record import points
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer

HOST = "head-of-alice"
STEP = {"kind": "step", "step": 1, "total_steps": 1, "loss": 2.0, "tokens_per_second": 9.0, "time": 1.0}
HISTORY = [{"epoch": 1.0, "step": 1, "loss": 2.0}]


@pytest.fixture
def publication(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publication:
    """A run in alice's home on a host of a telling name, with every file that is known to keep a path."""
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    home = tmp_path / "home" / "alice"
    base = save_tiny_gemma3(home / "models" / "gemma-3-tiny")
    tiny_tokenizer(base)
    for name, key in (("tokenizer_config.json", "name_or_path"), ("config.json", "_name_or_path")):
        content = json.loads((base / name).read_text()) | {key: str(base), "vocab_file": f"{home}/my cache/vocab"}
        (base / name).write_text(json.dumps(content))
    extra = {"aio": {"nvme_path": f"{home}/scratch disk"}}
    data = {"train": f"{home}/data/rows.jsonl", "eval": str(tmp_path / "held out.jsonl")}
    values = {"model": str(base), "data": data, "batch": {"micro": 1}, "deepspeed": {"config": extra}}
    config = TrainConfig.model_validate(values)
    model = attach_lora(load_base_model(base, torch.float32, torch.device("cpu")), LoraConfig(r=2), 0, str(base))
    adapter = {name: parameter.detach() for name, parameter in model.adapter_parameters().items()}
    run, progress = tmp_path / "run-1", Progress(step=1, epoch=1.0, total_steps=1, log_history=HISTORY)
    checkpoint = run / "checkpoints" / "checkpoint-1"
    save_checkpoint(checkpoint, model, adapter, {"x": torch.ones(1)}, progress, config)
    (checkpoint / "data_origin.json").write_text(json.dumps({"files": [f"{home}/data/rows.jsonl"]}))
    RunRegistry(tmp_path / "gemfleet.db").create_run("run-1", "run", "{}")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run-1").symlink_to(run)
    recorder = RunRecorder(str(tmp_path), "run-1", points)
    recorder.push(0, [STEP], {"node": "n", "address": "a", "pid": 1})
    names = written_names(config, config)
    facts = {
        "data": public_name(str(config.data.train)),
        "data_report": renamed(f"{config.data.train}: 2 rows.", names),
    }
    return Publication(run, checkpoint, base, str(base), OutputConfig(formats=("merged",)), facts, names)


def leaks(folder: Path, *words: str) -> list[str]:
    """Files of a folder with one of these words in their name or content."""
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        found += [f"{path}: {w}" for w in words if w in str(path.relative_to(folder)) or w.encode() in content]
    return found


def test_no_path_user_or_host_is_in_a_result(publication: Publication, tmp_path: Path) -> None:
    assert leaks(publication.run_folder, HOST)  # the run's own folder keeps them
    assert leaks(publication.checkpoint, "alice")
    output = publish(publication)
    words = (str(tmp_path), "alice", HOST, "scratch/", "/home", "my cache")
    assert leaks(output, *words) == []
    assert list(output.glob("runs/*/events.out.tfevents.*"))
    written = json.loads((output / "training_config.json").read_text())["train"]
    assert written["data"]["train"] == "rows.jsonl"
    assert written["data"]["eval"] == "held out.jsonl"
    assert written["deepspeed"]["config"] == {"aio": {"nvme_path": "scratch disk"}}
    assert "rows.jsonl: 2 rows." in (output / "README.md").read_text()


def test_an_export_names_nothing_either(publication: Publication, tmp_path: Path) -> None:
    for export in (export_adapter, export_merged):
        folder = export(publication, tmp_path / export.__name__)
        assert leaks(folder, str(tmp_path), "alice") == []


def test_a_board_keeps_its_figures(publication: Publication) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (publish(publication) / "runs").iterdir()
    board = EventAccumulator(str(folder))
    board.Reload()
    assert [event.value for event in board.Scalars("train/loss")] == [2.0]


def test_what_a_source_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "google" / "gemma").mkdir(parents=True)
    cached = f"{tmp_path}/hub/models--google--gemma-3-1b-it/snapshots/abc"
    names = {
        "demo": ("demo", "google/gemma-3-270m"),
        "google/gemma-3-1b-it": ("google/gemma-3-1b-it", "google/gemma-3-1b-it"),
        "google/gemma": ("gemma", "./gemma"),  # there is a folder of that name here
        "~/models/mine": ("mine", "./mine"),
        "./mine": ("mine", "./mine"),
        cached: ("google/gemma-3-1b-it", "google/gemma-3-1b-it"),
        "git+git@host:group/m.git#main": ("git+git@host:group/m.git#main", "git+git@host:group/m.git#main"),
        "git+https://huggingface.co/google/gemma-3-1b-it#main": (
            "git+https://huggingface.co/google/gemma-3-1b-it#main",
            "google/gemma-3-1b-it",
        ),
        "git+file:///srv/alice/m.git#main": ("m.git", "./m.git"),
        "s3://bucket/m": ("s3://bucket/m", "s3://bucket/m"),
    }
    assert {source: (public_name(source), base_reference(source)) for source in names} == names
    hub = [source for source in names if is_hub_id(base_reference(source))]
    assert hub == ["demo", "google/gemma-3-1b-it", cached, "git+https://huggingface.co/google/gemma-3-1b-it#main"]


def test_a_name_is_not_found_inside_another() -> None:
    names = {"/d": "rows", "/d/sub": "more", "rows": "never"}
    assert renamed("/d:3 and /d/sub/x, git@host/d2, rows/d", names) == "rows:3 and more/x, git@host/d2, rows/d"


def test_the_card_of_an_evaluation_names_no_path() -> None:
    card = evaluation_card("/home/alice/m", {"loss": 1.0}, {"data": "rows.jsonl", "data_report": "."})
    assert "alice" not in card


def test_the_searcher_finds(tmp_path: Path) -> None:
    (tmp_path / getpass.getuser()).mkdir()
    (tmp_path / "x").write_bytes(b"\x00/home/alice\x00")
    assert len(leaks(tmp_path, "alice", getpass.getuser())) >= 2
