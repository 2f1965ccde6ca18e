"""Millions of rows are prepared by a driver that holds lengths only, while the object store spills to disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_tokenizer import tiny_tokenizer

ROWS = int(os.environ.get("GEMFLEET_ROWS", "1000000"))
DRIVER_BYTES = 2 * 2**30
STORE_BYTES = 100 * 2**20  # less than the tokens take

# Runs in a process of its own: the memory of this one would count the tests before.
DRIVER = """
import json, resource, sys, time, tempfile
from pathlib import Path
import ray
from gemfleet.launcher.run.data.pack import pack_on_cluster
from gemfleet.launcher.run.data.tokenise import tokenise_on_cluster
from gemfleet.train.config.schema import TrainConfig

path, tokenizer, store = sys.argv[1], sys.argv[2], int(sys.argv[3])
with tempfile.TemporaryDirectory(prefix="gf-ray-", dir="/tmp") as folder:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=store, _temp_dir=folder)
    data = {"train": path, "max_length": 1024, "eval_fraction": 0.001}
    config = TrainConfig.model_validate({"model": "demo", "data": data, "batch": {"global": 2048}})
    started = time.time()
    prepared = tokenise_on_cluster(config, {node["NodeID"]: tokenizer for node in ray.nodes()})
    tokenised = time.time()
    source = pack_on_cluster(prepared, config, 2)
    packed = time.time()
    first, last = source.step(0, 0, 0), source.step(0, source.steps_per_epoch - 1, 1)
    print(json.dumps({
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "examples": prepared.report.examples, "tokens": prepared.report.tokens,
        "steps": source.steps_per_epoch, "step_examples": [first.step_examples, last.step_examples],
        "tokenise_s": round(tokenised - started, 1), "pack_s": round(packed - tokenised, 1),
    }))
    ray.shutdown()
"""


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_millions_of_rows_leave_the_driver_small(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path / "tokenizer")
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number in range(ROWS):
            file.write(f'{{"prompt": "what is {number} and {number % 97} ", "completion": "the answer {number}"}}\n')
    command = [sys.executable, "-c", DRIVER, str(path), str(tmp_path / "tokenizer"), str(STORE_BYTES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    print(f"{ROWS:,} rows: {told}")
    assert told["examples"] == ROWS - round(ROWS * 0.001)
    assert told["tokens"] * 5 > STORE_BYTES
    assert told["steps"] == -(-told["examples"] // 2048)
    assert told["step_examples"] == [2048, told["examples"] % 2048 or 2048]
    assert told["peak_bytes"] < DRIVER_BYTES
