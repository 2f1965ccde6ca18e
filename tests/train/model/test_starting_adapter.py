"""An adapter to go on from: what does not fit is one sentence, and what fits is loaded as it was saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.run.starting_adapter import check_adapter, keep_adapter, run_adapter, with_kept_adapter
from gemfleet.train.checkpoint.lineage import base_digest
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.recipe import LoraConfig
from gemfleet.train.errors import UserError
from gemfleet.train.model.gemma import attach_lora
from gemfleet.train.model.starting_adapter import ORIGIN_FILE, origin_of
from safetensors.torch import load_file, save_file
from support.tiny_model import save_tiny_gemma3, tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in `model`, and a peft adapter for it in `adapter`, whose matrices are all random."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny_gemma3(folder / "model")
    tiny_tokenizer(folder / "model")
    model = attach_lora(tiny_gemma3(), LoraConfig(r=4), 1, "google/gemma-3-270m")
    for parameter in model.adapter_parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    model.peft_model.save_pretrained(folder / "adapter")
    return folder


def train(place: Path, **lora: Any) -> TrainConfig:
    values = {"model": str(place / "model"), "data": {"train": "x.jsonl"}, "lora": {"r": 4, **lora}}
    return TrainConfig.model_validate(values)


def copied(place: Path, folder: Path, **options: Any) -> Path:
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((place / "adapter" / name).read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text()) | options
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_it_is_loaded_as_it_was_saved(place: Path) -> None:
    note = check_adapter(place / "adapter", train(place))
    assert str(note).startswith("the adapter names its base google/gemma-3-270m; whether that is train.model")
    model = attach_lora(tiny_gemma3(), LoraConfig(r=4), 2, "x", place / "adapter")
    saved = load_file(place / "adapter" / "adapter_model.safetensors")
    loaded = {name.replace(".default.", "."): p for name, p in model.adapter_parameters().items()}
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert {p.dtype for p in loaded.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("lora", "options", "problem"),
    [
        ({"r": 8}, {}, r"train\.lora\.r is 8, but the adapter in .* has 4"),
        ({"alpha": 8.0}, {}, r"train\.lora\.alpha is 8, but the adapter in .* has 32"),
        ({"target_modules": ["q_proj"]}, {}, "is on down_proj, .* has 48 others"),
        ({}, {"use_dora": True}, "use_dora is True"),
        ({}, {"use_rslora": True}, "use_rslora is True"),
        ({}, {"bias": "all"}, "bias is all"),
        ({}, {"rank_pattern": {"q_proj": 2}}, "rank_pattern is"),
        ({}, {"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({}, {"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({}, {"init_lora_weights": "lora_ga"}, "changes the base"),
        ({}, {"kasa_config": {"beta": 1}}, "kasa_config is"),
        ({}, {"peft_type": "IA3"}, "of the kind IA3"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    place: Path, tmp_path: Path, lora: dict[str, Any], options: dict[str, Any], problem: str
) -> None:
    folder = copied(place, tmp_path / "adapter", **options)
    with pytest.raises(UserError, match=problem) as error:
        check_adapter(folder, train(place, **lora))
    assert "\n" not in str(error.value)


def test_other_shapes_and_another_base_are_refused(place: Path, tmp_path: Path) -> None:
    folder = copied(place, tmp_path / "adapter")
    made = folder / "training_config.json"
    made.write_text(json.dumps({"made_from": {"base": base_digest(place / "model")}}))
    assert check_adapter(folder, train(place)) is None
    made.write_text(json.dumps({"made_from": {"base": "another"}}))
    with pytest.raises(UserError, match="a base with other weights"):
        check_adapter(folder, train(place))
    made.unlink()
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    save_file({**tensors, name: tensors[name][:-1].clone()}, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"has \(\d+, 4\) for .* but train\.model needs"):
        check_adapter(folder, train(place))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match="is a pickle"):
        check_adapter(folder, train(place))


def test_damaged_tensors_are_refused(place: Path, tmp_path: Path) -> None:
    folder = copied(place, tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    tensors, content = load_file(weights), weights.read_bytes()
    for length in (4, 100, len(content) - 1):
        weights.write_bytes(content[:length])
        with pytest.raises(UserError, match="cannot be read"):
            check_adapter(folder, train(place))
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] * torch.nan}, weights)
    with pytest.raises(UserError, match=f"numbers in {name} that are no finite floats"):
        check_adapter(folder, train(place))


def test_a_run_keeps_its_own_copy(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemfleet.cluster.registry.run_registry import RunRegistry

    monkeypatch.setenv("GEMFLEET_HOME", str(tmp_path))
    RunRegistry(tmp_path / "gemfleet.db").create_run("first-1", "first", "{}")
    with pytest.raises(UserError, match="no such run has published an adapter; `gemfleet publish first-1` does it"):
        run_adapter("latest")
    output, run = tmp_path / "runs" / "first-1" / "output", tmp_path / "runs" / "second-1"
    output.parent.mkdir(parents=True)
    run.mkdir()
    copied(place, output)
    (output / "checkpoint-40").mkdir()
    RunRegistry(tmp_path / "gemfleet.db").create_run("second-1", "second", "{}")
    assert run_adapter("latest") == run_adapter("first") == (output, "run first-1, step 40")
    kept = keep_adapter("first", run)
    assert origin_of(kept, "").name == "run first-1, step 40"
    assert sorted(path.name for path in kept.iterdir()) == [
        *("adapter_config.json", "adapter_model.safetensors", ORIGIN_FILE)
    ]
    config = LaunchConfig.model_validate({"train": {"model": "m", "adapter": "first", "data": {"train": "x"}}})
    assert with_kept_adapter(config, run).train.adapter == str(kept)
    other = config.model_copy(update={"train": config.train.model_copy(update={"adapter": "owner/other"})})
    assert with_kept_adapter(other, run) is other
    assert keep_adapter(str(kept), run) == kept
    assert run_adapter("owner/other") is None
