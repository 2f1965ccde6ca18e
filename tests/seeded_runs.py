"""Seeded runs on every strategy with two ranks, and digests of all that they leave: run before and after a move.

    python tests/seeded_runs.py FOLDER > before.json

Two trees compute the same where the two files are equal. Dates, run ids, rates, times and versions are left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "ddp-int8": {"strategy": "ddp", "quantization": "int8"},
    "ddp-selective": {"strategy": "ddp", "activation_checkpointing": "selective"},
    "fsdp2": {"strategy": "fsdp2"},
    "zero1": {"strategy": "deepspeed", "deepspeed": {"stage": 1}},
    "zero2": {"strategy": "deepspeed", "deepspeed": {"stage": 2}},
    "zero3": {"strategy": "deepspeed", "deepspeed": {"stage": 3}},
}
FIGURES = ("kind", "step", "loss", "grad_norm", "learning_rate", "eval_loss", "tokens", "supervised_tokens", "epoch")
CHANGING = re.compile(
    r"time|date|second|rate$|per_|mfu|hfu|memory|bytes|utilisation|version|python|torch|wait|flops|host|runtime|mtime|ended|began|created"
)
WORDS = re.compile(
    r"\d{4}-\d\d-\d\d[T _]?[\d:.,+-]*Z?|[\d,.]+ tokens/s|[\d,.]+ tokens a second|took [^.]*|[\d.]+ (s|min|h)\b"
    r"|/\S*/(home|work)/\S*"
)


def main(folder: Path) -> None:
    try:
        from support.tiny_model import save_tiny_gemma3
        from support.tiny_tokenizer import tiny_tokenizer
    except ImportError:
        from tiny_model import save_tiny_gemma3
        from tiny_tokenizer import tiny_tokenizer
    work, home = folder / "work", folder / "home"
    work.mkdir(parents=True)
    save_tiny_gemma3(work / "model")
    tiny_tokenizer(work / "model")
    rows = [{"prompt": f"question {i} what ", "completion": f"answer {i % 7} cat"} for i in range(64)]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**os.environ, "GEMFLEET_HOME": str(home), "OMP_NUM_THREADS": "1"}
    for name, choice in STRATEGIES.items():
        train = {
            "model": "./model",
            "data": {"train": "rows.jsonl", "max_length": 64},
            "batch": {"global": 4, "micro": 2},
            "optim": {"learning_rate": 1e-3},
            "precision": "fp32",
            "checkpoint": {"every": 5},
            "activation_checkpointing": "off",
            **choice,
        }
        config = {"train": train, "cluster": {"address": "local", "workers": 2}, "api": {"enabled": False}}
        (work / f"{name}.json").write_text(json.dumps(config))
        command = [sys.executable, "-m", "gemfleet.launcher.cli", "train", f"{name}.json", "--id", name]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        print(name, done.returncode, file=sys.stderr)
        if done.returncode:
            print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
    found = {name: left_of(home, name) for name in STRATEGIES}
    print(json.dumps(found, indent=1, sort_keys=True))


def left_of(home: Path, run: str) -> dict[str, Any]:
    with sqlite3.connect(home / "gemfleet.db") as db:
        records = [
            json.loads(row[0])
            for row in db.execute("SELECT record FROM metrics WHERE run_id=? ORDER BY step, kind", (run,))
        ]
    return {
        "records": [{key: record[key] for key in FIGURES if key in record} for record in records],
        "files": {
            str(path.relative_to(home / "runs" / run)): digest(path)
            for part in ("checkpoints", "output")
            for path in sorted((home / "runs" / run / part).rglob("*"))
            if path.is_file() and "tfevents" not in path.name
        },
    }


def digest(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".json":
        data = json.dumps(lasting(json.loads(data)), sort_keys=True).encode()
    elif path.suffix in (".md", ".svg", ".txt", ".yaml"):
        data = WORDS.sub("", data.decode()).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def lasting(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: lasting(v, k) for k, v in value.items() if not CHANGING.search(k) and k not in ("sha256", "size")}
    if isinstance(value, list):
        return [lasting(inner) for inner in value]
    return WORDS.sub("", value) if isinstance(value, str) else value


if __name__ == "__main__":
    main(Path(sys.argv[1]))
