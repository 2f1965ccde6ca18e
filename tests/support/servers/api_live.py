"""A real registry with runs of every kind, and a live server over it."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from gemfleet.cluster.checkpoint_store.manifest import FileEntry, Manifest
from gemfleet.cluster.registry.run_registry import Run, RunRegistry, RunState
from gemfleet.launcher.api.allowed import Allowed
from gemfleet.launcher.api.app import create_app
from gemfleet.launcher.api.server import bind, make_server
from gemfleet.launcher.api.settings import ApiSettings, Tokens
from gemfleet.launcher.config.load import dump_config
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.data_view.pictures import thumbnails
from gemfleet.launcher.data_view.view import Bucket, DataView, Epoch, Example, LeftOutRows, Lengths, SetView, Span
from gemfleet.launcher.runs.folder import ANSWERED_PICTURES_FILE, DATA_FILE
from gemfleet.launcher.runs.registry import registry_of
from gemfleet.launcher.runs.sweeps import Sweep, Trial, write_sweep
from gemfleet.launcher.tracking.state import TrackerState

TRACKER_PAGE = "http://127.0.0.1:5000/#/experiments/1/runs/a1"
CONFIG = "name: alpha\ntrain:\n  model: demo\n  hub_token: hf_abcdefghijklmnopqrstuvwxyz\n  data: {train: demo}\n"

SQUARE = thumbnails([np.full((3, 32, 32), 128, np.uint8)])
DATA = DataView(
    model="demo",
    sets=[
        SetView(
            name="rows",
            path="/data/rows.jsonl",
            use="train",
            format="messages",
            rows=12,
            examples=9,
            held_out=1,
            tokens=900,
            supervised_tokens=300,
            left_out=[LeftOutRows(reason="no content", count=2, first=["line 3 (HF_TOKEN=hf_abcdefghijkl)"])],
            unused=["score"],
        )
    ],
    lengths=Lengths(
        shortest=10,
        median=90,
        longest=180,
        histogram=[Bucket(shortest=1, longest=100, count=7), Bucket(shortest=101, longest=200, count=2)],
    ),
    epoch=Epoch(
        examples=9,
        tokens=900,
        supervised_tokens=300,
        global_batch=4,
        steps=3,
        steps_of_run=8,
        ranks=2,
        row_tokens=256,
        rows=2.0,
        fill=0.59,
    ),
    notes=[],
    examples=[
        Example(
            name="example 1 of 9",
            tokens=30,
            supervised_tokens=5,
            spans=[
                Span(text="<bos><start_of_turn>user\nWhat is <b>2 + 2</b>?<end_of_turn>\n", supervised=False),
                Span(text="It is 4.<end_of_turn>", supervised=True),
            ],
            pictures=SQUARE,
        ),
        Example(
            name="example 5 of 9",
            tokens=12,
            supervised_tokens=6,
            spans=[Span(text="password: ", supervised=False), Span(text="hunter2", supervised=True)],
        ),
    ],
)


def step_record(step: int, total: int = 8) -> dict[str, Any]:
    """What rank 0 reports for one step."""
    return {
        "kind": "step",
        "step": step,
        "total_steps": total,
        "epoch": step / total,
        "epochs": 1.0,
        "loss": 3.0 - step / 10,
        "learning_rate": 2e-4,
        "grad_norm": 1.0,
        "step_seconds": 0.5,
        "data_wait_seconds": 0.01,
        "tokens": 100,
        "tokens_per_second": 200.0,
        "world_size": 2,
        "peak_memory_bytes": 10**9,
        "memory_bytes": [8 * 10**8, 9 * 10**8],
        "memory_total_bytes": [10**10, 10**10],
        "utilisation": [0.75, None],
        "seconds_left": 0.5 * (total - step),
        "time": time.time(),
    }


def make_checkpoint(home: Path, run_id: str, step: int) -> Path:
    """A committed checkpoint of two small files, with its manifest."""
    folder = home / "runs" / run_id / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    files = {"adapter_model.safetensors": os.urandom(3000), "adapter_config.json": b'{"r": 16}'}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    entries = [FileEntry(n, len(c), hashlib.sha256(c).hexdigest()) for n, c in sorted(files.items())]
    losses = {"eval_loss": 2.0 + step / 100}
    (folder / "manifest.json").write_text(Manifest(step, 1, 1_700_000_000.0, tuple(entries), losses).to_json())
    return folder


def publish_files(home: Path, run_id: str) -> Path:
    """A published folder: an adapter, a whole checkpoint, and three answers of which one is the truth."""
    folder = home / "runs" / run_id / "output"
    (folder / "checkpoint-8").mkdir(parents=True)
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md", "model.gguf", "checkpoint-8/state"):
        (folder / name).write_bytes(f"content of {name}".encode())
    answers = [
        {"prompt": "<start_of_turn>user\nWhat is <b>2 + 2</b>?", "reference": "It is 4.", "prediction": "It is 4. "},
        {"prompt": "And 3 + 3?", "reference": "6", "prediction": "password: hunter2"},
        {"prompt": "ab " * 3000, "reference": "7", "prediction": ""},
    ]
    lines = [json.dumps(answer) for answer in answers]
    (folder / "predictions.jsonl").write_text("\n".join([*lines[:1], '{"prompt": 1}', *lines[1:]]) + "\n")
    pictures = [SQUARE, ["https://elsewhere.example/x.png"]]
    (folder.parent / ANSWERED_PICTURES_FILE).write_text(json.dumps(pictures))
    (folder / "metrics.json").write_text('{"exact_match": 0.25, "bleu": NaN}')
    return folder


def fill(home: Path) -> RunRegistry:
    """`alpha-1` succeeded with everything; `alpha-2` trains; `alpha-3` waits; `alpha-4` failed."""
    registry = registry_of(home)
    for number in (1, 2, 3, 4):
        registry.create_run(f"alpha-{number}", "alpha", CONFIG, os.getpid())
    for run_id, steps in (("alpha-1", 8), ("alpha-2", 3)):
        registry.transition(run_id, RunState.TRAINING)
        registry.add_metrics(run_id, [step_record(step) for step in range(1, steps + 1)])
        registry.heartbeat(run_id, 0, "node-1", "127.0.0.1", os.getpid())
    registry.add_metrics("alpha-1", [{"kind": "eval", "step": 8, "eval_loss": float("inf")}])
    for step in (4, 8):
        folder = make_checkpoint(home, "alpha-1", step)
        registry.add_checkpoint("alpha-1", step, str(folder), 3009, 1, seconds=0.25)
    registry.add_event("alpha-1", "checkpoint_failed", "checkpoint-6 was lost: the disk is full")
    registry.add_event("alpha-1", "batch_found", "micro-batch 8 after 5 trials", {"rows": 8, "variant": "ddp"})
    registry.add_event("alpha-2", "batch_planned", "micro-batch 4 by the plan: a pass holds all rows", {"rows": 4})
    registry.add_event("alpha-1", "strategy", "strategy for 2 ranks: ddp fits", {"strategy": "ddp", "fitting": ["ddp"]})
    registry.transition("alpha-1", RunState.SUCCEEDED)
    registry.transition("alpha-3", RunState.PREFLIGHT)
    registry.add_event("alpha-3", "waiting", "asked for 8 workers with 1 GPU each; 2 GPUs are free")
    registry.transition("alpha-4", RunState.FAILED, "clone of https://me:pa55word@hub/x failed")
    (home / "runs" / "alpha-1" / DATA_FILE).write_text(DATA.model_dump_json())
    TrackerState("mlflow", "http://127.0.0.1:5000", "a1", TRACKER_PAGE).write(home / "runs" / "alpha-1")
    logs = home / "runs" / "alpha-1" / "logs"
    logs.mkdir(parents=True)
    (logs / "driver.log").write_text("one\ntwo\nHF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz\n")
    (logs / "rank-1.log").write_text("hello\nunfinis")
    return registry


def add_sweep(registry: RunRegistry, home: Path) -> None:
    """The sweep `lr` of six: two have succeeded, one was pruned, one trains, one failed, one waits."""
    grid = {"train.lora.r": ["4", "8", "12", "16", "20", "24"], "train.data.format": ['"text"']}
    trials = [
        Trial(number=number, settings={"train.lora.r": value, "train.data.format": '"text"'})
        for number, value in enumerate(grid["train.lora.r"], 1)
    ]
    trials[2].pruned = "evaluation loss 2.9000 at step 4 is not among the better half"
    sweep = Sweep(
        id="lr", name="lr", created_at=1e9, launched_from="/", metric="eval_loss", grid=grid, ranges={}, wanted=6,
        sampler="grid", seed=0, parallel=None, prune=True, trials=trials,
    )  # fmt: skip
    write_sweep(home, sweep)
    for trial, steps in zip(trials, (8, 8, 4, 2, 1), strict=False):
        run_id = sweep.run_id(trial)
        registry.create_run(run_id, "lr", "{}", os.getpid())
        registry.transition(run_id, RunState.TRAINING)
        registry.add_metrics(run_id, [step_record(step) for step in range(1, steps + 1)])
        losses = [(step, 3.0 - 0.1 * trial.number - 0.05 * step) for step in range(0, steps + 1, 2)]
        registry.add_metrics(run_id, [{"kind": "eval", "step": step, "eval_loss": loss} for step, loss in losses])
    for number, state in ((1, RunState.SUCCEEDED), (2, RunState.SUCCEEDED), (3, RunState.STOPPED)):
        registry.transition(sweep.run_id(trials[number - 1]), state)
    registry.transition("lr-005", RunState.FAILED, "the password=hunter2 was refused")


@dataclass
class RowSubmitter:
    """Makes or opens the row as a real submitter does, and starts no process."""

    registry: RunRegistry
    started: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def start(self, run_id: str, config: dict[str, Any]) -> None:
        self.started.append((run_id, config))
        self.registry.create_run(run_id, "run", json.dumps(config), None)

    def resume(self, run: Run) -> None:
        self.registry.reopen(run.id, run.config, None)


@dataclass
class Live:
    """A server that listens."""

    url: str
    home: Path
    registry: RunRegistry
    submitter: RowSubmitter
    client: httpx2.Client

    def get(self, path: str, status: int = 200, **options: Any) -> Any:
        answer = self.client.get(path, **options)
        assert answer.status_code == status, answer.text
        return answer.json()

    def post(self, path: str, status: int, **options: Any) -> Any:
        answer = self.client.post(path, **options)
        assert answer.status_code == status, answer.text
        return answer.json()


def serve(home: Path, tokens: Tokens | None = None, **changes: Any) -> Iterator[Live]:
    """A live server over a filled registry, until the generator is closed."""
    registry = fill(home)
    submitter = RowSubmitter(registry)
    roots = (home / "data",)
    settings = ApiSettings(home=home, port=0, tokens=tokens, allowed=Allowed(roots=roots), poll_seconds=0.05, **changes)
    listener = bind(settings)
    server = make_server(create_app(settings, submitter=submitter))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with httpx2.Client(base_url=url, timeout=10.0, trust_env=False) as client:
        deadline = time.monotonic() + 10
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        yield Live(url, home, registry, submitter, client)
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive(), "the server did not stop"


def add_many(registry: RunRegistry, count: int) -> None:
    """`many-001` and on, which have ended, each with a whole configuration, four steps and two tags."""
    config = dump_config(LaunchConfig.model_validate({"train": {"model": "demo", "data": {"train": "demo"}}}))
    names = [f"many-{number:03}" for number in range(1, count + 1)]
    states = [str(state) for state in (RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED)]
    steps = {
        run: [step_record(step) | {"loss": 3.0 - at / count} for step in (1, 2, 3, 4)] for at, run in enumerate(names)
    }
    now = time.time() - 10_000
    with registry.connect() as db:
        db.executemany(
            "INSERT INTO runs (id, name, state, created_at, updated_at, ended_at, config) "
            "VALUES (?, 'many', ?, ?, ?, ?, ?)",
            [(run, states[at % 3], now + at, now + at, now + at, config) for at, run in enumerate(names)],
        )
        db.executemany(
            "INSERT INTO events (run_id, time, kind, message, data) VALUES (?, ?, 'state', ?, ?)",
            [
                (run, now, "ended", json.dumps({"state": "failed", "figures": {"loss": steps[run][-1]["loss"]}}))
                for run in names
            ],
        )
        tags = [(run, "team", ("search", "ads")[at % 2]) for at, run in enumerate(names)]
        tags += [(run, "purpose", "baseline") for run in names]
        db.executemany("INSERT INTO tags (run_id, key, value) VALUES (?, ?, ?)", tags)
    for run in names:
        registry.add_metrics(run, [*steps[run], {"kind": "eval", "step": 4, "eval_loss": 2.0}])
