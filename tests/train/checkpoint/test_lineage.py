"""Digests of data and base: equal however the same lies in blocks and files, different where anything in it is."""

from __future__ import annotations

from pathlib import Path

import torch
from gemfleet.train.checkpoint.lineage import base_digest
from gemfleet.train.data.digest import data_digest, example_digests
from safetensors.torch import load_file, save_file
from support.reference_step import examples
from support.tiny_model import save_tiny_gemma3


def test_the_digest_of_data_does_not_depend_on_its_blocks() -> None:
    block = examples()
    whole = data_digest([example_digests(block)])
    parts = [block.select(range(3)), block.select([]), block.select(range(3, len(block)))]
    assert data_digest(map(example_digests, parts)) == whole
    backwards = data_digest(map(example_digests, reversed(parts)))
    assert backwards != whole
    assert backwards.unordered == whole.unordered
    assert data_digest([]).examples == 0


def test_what_is_supervised_belongs_to_it() -> None:
    block = examples()
    block.supervised[1] = not block.supervised[1]
    assert data_digest([example_digests(block)]).unordered != data_digest([example_digests(examples())]).unordered


def test_another_base_of_the_same_shape_is_another(tmp_path: Path) -> None:
    save_tiny_gemma3(tmp_path / "one")
    save_tiny_gemma3(tmp_path / "same")
    save_tiny_gemma3(tmp_path / "other", seed=1)
    assert base_digest(tmp_path / "one") == base_digest(tmp_path / "same")
    assert base_digest(tmp_path / "one") != base_digest(tmp_path / "other")
    tensors = load_file(tmp_path / "same" / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].clone() + torch.eye(64)[63]
    save_file(tensors, tmp_path / "same" / "model.safetensors", metadata={"format": "pt"})
    assert base_digest(tmp_path / "one") != base_digest(tmp_path / "same")
