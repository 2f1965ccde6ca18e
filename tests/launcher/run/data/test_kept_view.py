"""What a run keeps of its data is what `gemfleet data` says of it before."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from gemfleet.launcher.data_view.gather import Reading, gather
from gemfleet.launcher.data_view.view import DataView
from gemfleet.launcher.run.data.kept_view import ask_examples, keep_view
from gemfleet.launcher.run.data.tokenise import tokenise_on_cluster
from gemfleet.train.config.schema import TrainConfig
from support.tiny_tokenizer import tiny_tokenizer


def rows_file(path: Path, rows: int, words: int) -> str:
    lines = [
        json.dumps({"prompt": f"what is {i} ", "completion": "the answer " * (1 + i % words)}) for i in range(rows)
    ]
    path.write_text("\n".join([*lines, "{broken"]))
    return str(path)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="gf-ray-", dir="/tmp") as folder:  # short: sockets live in it
        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, _temp_dir=folder)
        yield
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("several", [False, True])
def test_the_kept_description_is_that_of_one_process(tmp_path: Path, several: bool) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    paths = [rows_file(tmp_path / "rows.jsonl", 50, 9), rows_file(tmp_path / "more.jsonl", 20, 5)]
    sets: Any = [{"path": path, "weight": weight} for path, weight in zip(paths, (1, 2), strict=True)]
    data = {"train": sets if several else paths[0], "eval": None if several else paths[1]}
    train = TrainConfig.model_validate({"model": "demo", "data": {**data, "max_length": 64}, "batch": {"global": 8}})
    folders = {node["NodeID"]: str(tmp_path / "tokenizer") for node in ray.nodes()}
    prepared = tokenise_on_cluster(train, folders)
    keep_view(tmp_path, train, prepared, 2, ask_examples(prepared, folders)).join()
    kept = DataView.model_validate_json((tmp_path / "data.json").read_bytes())
    said = gather(train, Reading(tokenizer), 2)
    assert (kept.epoch, kept.lengths) == (said.epoch, said.lengths)
    assert kept.sets == said.sets
    assert [one.name for one in kept.examples][::3] == (
        ["rows, example 1 of 45", "more, example 18 of 18"] if several else ["example 1 of 50", "example 50 of 50"]
    )
    assert len(kept.examples) == 4
    assert kept.examples[0].spans == said.examples[0].spans
