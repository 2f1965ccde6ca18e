"""GGUF files by llama.cpp's own converters, where they are, and what is said where they are not."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.result.gguf import CONVERTER, VARIABLE, check_converter
from gemfleet.launcher.run.check_inputs import check_everything
from gemfleet.train.errors import UserError
from support.places import REPOSITORY
from support.tiny_multimodal import save_tiny_multimodal
from support.tiny_result import tiny_base, tiny_result
from support.tiny_tokenizer import tiny_tokenizer

LLAMA_CPP = Path(os.environ.get(VARIABLE) or REPOSITORY / ".cache" / "llama.cpp")
needs_converter = pytest.mark.skipif(
    not (LLAMA_CPP / CONVERTER).is_file(), reason="llama.cpp's converter is not here (make llama-cpp)"
)


def sentencepiece_model(folder: Path) -> None:
    """A `tokenizer.model` of a few hundred pieces."""
    from sentencepiece import SentencePieceTrainer

    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(f"the sea number {i} and a cat {i * 7919}" for i in range(500)),
        model_writer=written,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())


def test_a_converter_that_is_missing_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_base(tmp_path / "mine")
    (tmp_path / "rows.jsonl").write_text('{"text": "a cat"}\n')
    train = {"model": str(model), "data": {"train": str(tmp_path / "rows.jsonl")}}
    config = LaunchConfig.model_validate({"train": train, "output": {"formats": ["gguf"]}})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UserError, match=r"convert_hf_to_gguf\.py is not on PATH, and LLAMA_CPP is not set"):
        check_everything(config)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match=r"which has no convert_hf_to_gguf\.py"):
        check_everything(config)
    (tmp_path / CONVERTER).write_text("#!/bin/sh\n")
    (tmp_path / CONVERTER).chmod(0o700)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(UserError, match=r"mine has no tokenizer\.model"):
        check_everything(config)
    (model / "tokenizer.model").touch()
    check_everything(config)
    check_converter(["adapter", "merged"], tmp_path)


@needs_converter
@pytest.mark.parametrize("kind", ["text", "multimodal"])
def test_the_real_converters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Of the merged model, and of the adapter as docs/results.md says; gguf reads both back."""
    pytest.importorskip("sentencepiece", reason="the converter needs sentencepiece (pip install 'gemfleet[gguf]')")
    model = tmp_path / "mine"
    if kind == "text":
        tiny_base(model)
    else:
        tiny_tokenizer(save_tiny_multimodal(model))
    sentencepiece_model(model)
    monkeypatch.setenv(VARIABLE, str(LLAMA_CPP))
    output = tiny_result(tmp_path / "run", model, "owner/name", "messages", formats=["gguf"])
    merged = gguf.GGUFReader(output / "merged.gguf")
    assert merged.fields["general.architecture"].contents() == "gemma3"
    assert {"blk.3.ffn_down.weight", "token_embd.weight"} <= {tensor.name for tensor in merged.tensors}
    assert not (output / "merged").exists()
    assert "*.gguf filter=lfs" in (output / ".gitattributes").read_text()
    command = [sys.executable, str(LLAMA_CPP / "convert_lora_to_gguf.py"), "--base", str(model), str(output)]
    subprocess.run([*command, "--outfile", str(tmp_path / "adapter.gguf")], check=True, capture_output=True)
    adapter = gguf.GGUFReader(tmp_path / "adapter.gguf")
    assert adapter.fields["adapter.lora.alpha"].contents() == 32.0
    assert len(adapter.tensors) == 2 * 7 * 4


@needs_converter
def test_what_the_converter_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentencepiece", reason="the converter needs sentencepiece (pip install 'gemfleet[gguf]')")
    model = tiny_base(tmp_path / "mine")
    (model / "tokenizer.model").write_bytes(b"not a model")
    monkeypatch.setenv(VARIABLE, str(LLAMA_CPP))
    with pytest.raises(UserError, match=r"converter could not write output\.formats' gguf: "):
        tiny_result(tmp_path / "run", model, "owner/name", "messages", formats=["gguf"])
    assert not (tmp_path / "run" / "output").exists()
