"""Data prepared by Ray tasks is, token for token, what one process prepares."""

from __future__ import annotations

import itertools
import json
import pickle
import tempfile
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from gemfleet.launcher.data_view.view import DataView, Example
from gemfleet.launcher.run.data import pack, tokenise
from gemfleet.launcher.run.data.kept_view import ask_examples, keep_view
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.pictures.format import PictureFormat
from gemfleet.train.data.prepared.store import PreparedCache, PreparedStore
from gemfleet.train.errors import UserError
from gemfleet.train.local.source import prepare_local
from support.pictures import chat, picture, seeing_model, written
from support.tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tokenizer_folder: Path) -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="gf-ray-", dir="/tmp") as folder:  # short: sockets live in it
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 * 2**20,
            _temp_dir=folder,
        )
        yield {node["NodeID"]: str(tokenizer_folder) for node in ray.nodes()}
        ray.shutdown()


def config_of(folder: Path, rows: int = 70, **data: Any) -> TrainConfig:
    path = folder / "train.jsonl"
    lines = [json.dumps({"prompt": f"what is {i} ", "completion": "the answer " * (1 + i % 9)}) for i in range(rows)]
    path.write_text("\n".join([*lines[:20], "{broken", *lines[20:], '{"prompt": "alone"}']))
    return TrainConfig.model_validate(
        {"model": "demo", "data": {"train": str(path), "max_length": 64} | data, "batch": {"global": 8}, "epochs": 2.5}
    )


def assert_same(one: Any, other: Any) -> None:
    for left, right in zip(astuple(one), astuple(other), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("kind", ["one set", "held out of each", "evaluation sets"])
def test_the_cluster_prepares_what_one_process_does(
    folders: dict[str, str], tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from transformers import AutoTokenizer

    config = config_of(tmp_path)
    if kind != "one set":
        more = tmp_path / "more.jsonl"
        more.write_text("".join(json.dumps({"text": f"more {number}"}) + "\n" for number in range(20)))
        sets = [{"path": str(more), "weight": 3}, {"path": config.data.train, "weight": 1}]
        evaluation = [str(more), config.data.train] if kind == "evaluation sets" else None
        config = config_of(tmp_path, train=sets, eval=evaluation)
    monkeypatch.setattr(pack, "MAX_STEPS_PER_BLOCK", 3)  # several blocks, crossing epochs
    monkeypatch.setattr("gemfleet.train.local.source.CHUNK_ROWS", 16)
    prepared = tokenise.tokenise_on_cluster(config, folders)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    cache = PreparedCache(PreparedStore(tmp_path / "cache", 2**30), tokenizer_folder)
    kept = [tokenise.tokenise_on_cluster(config, folders, cache=cache) for _ in range(2)]
    assert kept[1].reused == tuple(config.data.paths().values())
    monkeypatch.setattr(pack, "TOKENS_PACKED_HERE", 0)
    fresh = prepared
    for prepared, world_size, start, first in ((fresh, 2, 0, 13), (fresh, 3, 10, None), (kept[1], 2, 0, 999)):
        local, report = prepare_local(config.data, 8, config.seed, tokenizer, world_size)
        source = pack.pack_on_cluster(prepared, config, world_size, start, None, first)
        copy = pickle.loads(ray.cloudpickle.dumps(source))
        assert prepared.report == report
        assert (copy.steps_per_epoch, copy.eval_sets) == (local.steps_per_epoch, local.eval_sets)
        assert len(local.eval_sets) == (1 if kind == "one set" else 2)
        total = config.total_steps(local.steps_per_epoch)
        for step in range(start, total):
            epoch, within = divmod(step, local.steps_per_epoch)
            for rank in range(world_size):
                one, other = copy.step(epoch, within, rank), local.step(epoch, within, rank)
                assert_same(one.rows, other.rows)
                assert astuple(one)[1:] == astuple(other)[1:]
        for rank, name in itertools.product(range(world_size), local.eval_sets):
            assert_same(copy.eval_rows(rank, name), local.eval_rows(rank, name))
        assert len(copy._held) <= 2
        with pytest.raises(IndexError, match="was not prepared"):
            copy.step(9, 0, 0)


def test_pictures_prepared_by_the_cluster_are_those_of_one_process_and_travel_once(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    model = seeing_model(tmp_path / "model")
    for number in range(6):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"broken")
    parts = [
        [{"type": "image", "path": f"{(number + at) % 6}.png"} for at in range(number % 3)] for number in range(20)
    ]
    rows = [chat([*part, {"type": "text", "text": f"what is {n}"}], "the answer") for n, part in enumerate(parts)]
    path = written(tmp_path, *rows)
    values = {"model": str(model), "data": {"train": str(path), "max_length": 64}, "batch": {"global": 8}}
    config, sees = TrainConfig.model_validate(values), PictureFormat.of(model)
    monkeypatch.setattr("gemfleet.train.local.source.CHUNK_PICTURES", 4)
    here = dict.fromkeys(folders, str(model))
    cache = PreparedCache(PreparedStore(tmp_path / "cache", 2**30), model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    local, report = prepare_local(config.data, 8, config.seed, tokenizer, 2, pictures=sees)
    assert report.left_out_count == 3
    for again in (False, True):
        prepared = tokenise.tokenise_on_cluster(config, here, cache=cache, pictures=sees)
        assert bool(prepared.reused) == again
        source = pickle.loads(ray.cloudpickle.dumps(pack.pack_on_cluster(prepared, config, 2)))
        assert prepared.report == report
        assert source.pictures.tolist() == local.pictures.tolist()
        assert len(source.pictures) == 4
        for step, rank in itertools.product(range(local.steps_per_epoch), range(2)):
            one, other = source.step(0, step, rank).rows, local.step(0, step, rank).rows
            assert_same(one, other)
            np.testing.assert_array_equal(source.pixels(one.pictures), local.pixels(other.pictures))
        for name in local.eval_sets:
            assert set(source.eval_rows(0, name).pictures.tolist()) <= set(source.pictures.tolist())
    keep_view(tmp_path, config, prepared, 2, ask_examples(prepared, here)).join(60)
    view = DataView.model_validate_json((tmp_path / "data.json").read_bytes())
    assert [len(one.pictures) for one in view.examples] == [_shown(one) for one in view.examples]
    assert any(one.pictures for one in view.examples)
    small = PreparedCache(PreparedStore(tmp_path / "small", 10_000), model)  # the pixels alone are larger
    monkeypatch.setattr(tokenise, "_seen", lambda *_: pytest.fail("it fetches pictures that the cache does not take"))
    assert tokenise.tokenise_on_cluster(config, here, cache=small, pictures=sees).report == report


def _shown(example: Example) -> int:
    return sum(span.text.count("<image_soft_token>") for span in example.spans)


def test_an_evaluation_file_of_its_own_and_a_bounded_number_of_steps(folders: dict[str, str], tmp_path: Path) -> None:
    config = config_of(tmp_path, eval=str(tmp_path / "train.jsonl"), eval_fraction=0.0)
    config = config.model_copy(update={"max_steps": 2})
    prepared = tokenise.tokenise_on_cluster(config, folders)
    source, report = pack.pack_on_cluster(prepared, config, 1), prepared.report
    assert (report.examples, report.eval_examples) == (70, 70)
    assert source.step(0, 1, 0).step_examples == 8
    assert len(source.eval_rows(0, "train").document_lengths) == 70


def test_nothing_left_and_no_node_to_work_on_are_one_sentence_each(folders: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="70 longer than max_length 2"):
        tokenise.tokenise_on_cluster(config_of(tmp_path, max_length=2), folders)
    with pytest.raises(UserError, match="no node that holds the tokenizer has a CPU"):
        tokenise.tokenise_on_cluster(config_of(tmp_path), {})


def test_tokens_beyond_the_embedding_of_the_models_config_are_named(
    folders: dict[str, str], tokenizer_folder: Path, tmp_path: Path
) -> None:
    (tokenizer_folder / "config.json").write_text('{"model_type": "gemma3", "text_config": {"vocab_size": 4}}')
    try:
        with pytest.raises(UserError, match="70 a token beyond the model's embedding of 4 rows"):
            tokenise.tokenise_on_cluster(config_of(tmp_path), folders)
    finally:
        (tokenizer_folder / "config.json").unlink()
