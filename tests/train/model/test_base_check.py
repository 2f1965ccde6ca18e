"""A base is read from exactly its own files, and one that is damaged, incomplete or quantised is told in a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gemfleet.launcher.run.check_inputs import check_inputs
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.model.base_check import check_base, gemma_config
from gemfleet.train.model.gemma import load_base_model
from gemfleet.train.model.lean import WeightFiles
from gemfleet.train.model.merge import merge_adapter
from gemfleet.train.model.weight_files import INDEX_FILE, SINGLE_FILE, beside_note, stored_tensors, weights_beside
from safetensors.torch import load_file, save_file
from support.tiny_model import save_tiny_gemma3, tiny_gemma3
from support.tiny_multimodal import save_tiny_multimodal
from support.tiny_tokenizer import tiny_tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
CPU = torch.device("cpu")


def in_shards(folder: Path) -> Path:
    """The weights of a folder in two files with an index."""
    tensors = load_file(folder / SINGLE_FILE)
    names = sorted(tensors)
    owners: dict[str, str] = {}
    for number, part in ((1, names[:20]), (2, names[20:])):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        owners |= dict.fromkeys(part, file)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": owners}))
    (folder / SINGLE_FILE).unlink()
    return folder


def model_in(folder: Path) -> Path:
    save_tiny_gemma3(folder)
    tiny_tokenizer(folder)
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / SINGLE_FILE)
    change(tensors)
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(folder: Path) -> str:
    """What the check before a run says of a model."""
    (folder.parent / "rows.jsonl").write_text('{"text": "a cat"}\n')
    config = {"model": str(folder), "data": {"train": str(folder.parent / "rows.jsonl")}}
    with pytest.raises(UserError) as caught:
        check_inputs(TrainConfig.model_validate(config))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("../nowhere")


FILE_FAULTS: list[tuple[Callable[[Path], Any], str]] = [
    (lambda path: path.write_text(POINTER), "is a pointer of git-lfs"),
    (empty, "is empty"),
    (cut, ".*where its header speaks of"),
    (cut_in_the_header, "is not a safetensors file"),
    (lambda path: path.write_bytes(b"\xff" * 1000), "is not a safetensors file"),
    (link_to_nowhere, "is a link to .*nowhere, which does not exist"),
]


@pytest.mark.parametrize(("damage", "message"), FILE_FAULTS)
@pytest.mark.parametrize("shards", [False, True])
def test_a_weight_file_that_is_not_whole_is_named(
    tmp_path: Path, damage: Callable[[Path], Any], message: str, shards: bool
) -> None:
    folder = model_in(tmp_path / "model")
    name = SINGLE_FILE
    if shards:
        name = "model-00002-of-00002.safetensors"
        in_shards(folder)
    damage(folder / name)
    assert re.search(rf"{name} {message}", refused(folder))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "model-00001-of-00002.safetensors").unlink(),
            r"00001-of-00002\.safetensors does not exist",
        ),
        (lambda f: (f / INDEX_FILE).unlink(), f"has parts of weights but no {INDEX_FILE}"),
        (lambda f: (f / INDEX_FILE).write_text("[]"), "is no index of weights"),
        (lambda f: (f / INDEX_FILE).write_text('{"weight_map": {"a": "../b.safetensors"}}'), "is not a file beside it"),
        (lambda f: (f / INDEX_FILE).write_text(POINTER), "is a pointer of git-lfs"),
        (lambda f: (f / "config.json").write_text("[]"), "does not hold the settings of a model"),
        (lambda f: (f / "config.json").write_text(POINTER), "config.json is a pointer of git-lfs"),
        (lambda f: change_config(f, text_config="x"), "does not hold the settings of a model"),
        (lambda f: change_config(f, hidden_size="x"), "does not describe a Gemma 3"),
        (lambda f: change_config(f, num_attention_heads=0), "Gemma 3"),
        (lambda f: (f / "tokenizer.json").write_text(POINTER), "tokenizer.json is a pointer of git-lfs"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer of the model folder .* cannot be loaded"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "has an adapter_config.json"),
    ],
)
def test_what_else_a_broken_download_leaves_is_one_sentence(
    tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    folder = in_shards(model_in(tmp_path / "model"))
    damage(folder)
    assert re.search(message, refused(folder))


def test_a_tokenizer_that_no_installed_package_reads_is_refused(tmp_path: Path) -> None:
    folder = model_in(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer"}')
    (folder / "tokenizer.model").write_bytes(b"\012\014\012\005<pad>")
    assert "the tokenizer of the model folder" in refused(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(UP), f"lack {UP};"),
        (lambda t: [t.pop(name) for name in list(t) if "layers.2" in name], r"lack .* and \d+ more;"),
        (lambda t: t.update({NORM: torch.zeros(3)}), rf"have in another shape {NORM} \(3 where config.json says 64\)"),
        (lambda t: t.update({UP: t[UP].T.contiguous()}), "have in another shape .*up_proj"),
        (lambda t: t.update({UP: t[UP].to(torch.uint8)}), "up_proj.weight is of U8 numbers: the model is quantised"),
        (lambda t: t.update({UP: t[UP].to(torch.float8_e4m3fn)}), "is of F8_E4M3 numbers: the model is quantised"),
    ],
)
def test_weights_that_do_not_make_the_model_are_refused_in_every_loader(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    folder = model_in(tmp_path / "model")
    change_weights(folder, change)
    assert re.search(message, refused(folder))


def test_a_head_of_its_own_has_to_be_there(tmp_path: Path) -> None:
    folder = model_in(tmp_path / "model")
    change_config(folder, tie_word_embeddings=False)
    assert "lack lm_head.weight" in refused(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
        {"quantization_config": {"quant_method": "torchao"}},
        {"compression_config": {"format": "pack-quantized"}},
        {"text_config": {"quantization_config": {"quant_method": "quark"}}},
    ],
)
def test_a_base_that_is_quantised_already_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = model_in(tmp_path / "model")
    change_config(folder, **settings)
    assert "is quantised already" in refused(folder)


def test_every_loader_reads_the_files_of_the_index_alone_and_the_rest_is_named(tmp_path: Path) -> None:
    """A single file of other numbers beside the shards, which transformers would take instead of them."""
    folder = in_shards(model_in(tmp_path / "model"))
    save_tiny_gemma3(tmp_path / "other", seed=1)
    (tmp_path / "other" / SINGLE_FILE).rename(folder / SINGLE_FILE)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / "consolidated.safetensors").write_bytes(b"x")
    beside = ["consolidated.safetensors", SINGLE_FILE, "pytorch_model.bin"]
    assert weights_beside(folder) == beside
    assert beside_note(folder).endswith(f"not read in {folder}: {', '.join(beside)}")
    right = dict(tiny_gemma3().named_parameters())
    assert check_base(folder) is not None
    loaded = dict(load_base_model(folder, torch.float32, CPU).named_parameters())
    assert all(torch.equal(loaded[name], right[name]) for name in right)
    assert torch.equal(WeightFiles(folder).rows(UP, 0, 128), right[UP])
    (tmp_path / "adapter").mkdir()
    save_file({}, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"lora_alpha": 1, "r": 1, "bias": "none"}')
    merge_adapter(folder, tmp_path / "adapter", tmp_path / "merged")
    (file,) = (tmp_path / "merged").glob("*.safetensors")
    merged = load_file(file)
    assert merged.keys() == right.keys()
    assert all(torch.equal(merged[name], right[name]) for name in right)


def test_without_an_index_the_one_file_is_read_and_a_whole_model_has_nothing_beside_it(tmp_path: Path) -> None:
    folder = model_in(tmp_path / "model")
    assert beside_note(folder) == ""
    save_file({NORM: torch.zeros(64)}, folder / "old.safetensors")
    assert weights_beside(folder) == ["old.safetensors"]
    assert torch.equal(WeightFiles(folder).rows(NORM, 0, 64), tiny_gemma3().model.norm.weight)


def test_a_multimodal_model_is_whole_without_its_vision_tower_and_under_older_names(tmp_path: Path) -> None:
    save_tiny_multimodal(tmp_path)
    change_weights(tmp_path, lambda t: [t.pop(name) for name in list(t) if "vision" in name or "projector" in name])
    check_base(tmp_path)

    def older(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("model.language_model.", "language_model.model.")] = tensors.pop(name)

    change_weights(tmp_path, older)
    check_base(tmp_path)
    assert any(name.startswith("language_model.model.") for name in stored_tensors(tmp_path))


def test_config_json_chooses_no_kernel_and_no_other_file(tmp_path: Path) -> None:
    folder = model_in(tmp_path / "model")
    hostile = {
        "attn_implementation": "someone/kernel",
        "_attn_implementation": "someone/kernel",
        "_attn_implementation_internal": "someone/kernel",
        "use_kernels": True,
        "transformers_weights": "other.safetensors",
        "auto_map": {"AutoConfig": "evil.Config"},
    }
    change_config(folder, **hostile)
    config = gemma_config(folder)
    assert config._attn_implementation == "sdpa"
    assert config.transformers_weights == SINGLE_FILE
    assert not hasattr(config, "auto_map")
    model = load_base_model(folder, torch.float32, CPU)
    assert model.config._attn_implementation == "sdpa"
    assert not model.use_kernels
    save_tiny_multimodal(tmp_path / "multimodal")
    path = tmp_path / "multimodal" / "config.json"
    inner = json.loads(path.read_text())
    inner["text_config"] |= hostile
    path.write_text(json.dumps(inner))
    config = gemma_config(tmp_path / "multimodal")
    assert config.text_config._attn_implementation == "sdpa"
    assert load_base_model(tmp_path / "multimodal", torch.float32, CPU) is not None
