"""Writes a merged model as GGUF by llama.cpp's own converter, which is no part of gemfleet.

`$LLAMA_CPP` names a checkout of https://github.com/ggml-org/llama.cpp; else `convert_hf_to_gguf.py` has to be on PATH.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from gemfleet.train.errors import UserError
from gemfleet.train.model.compare import stored_dtype

CONVERTER = "convert_hf_to_gguf.py"
VARIABLE = "LLAMA_CPP"
GGUF_FILE = "merged.gguf"
TYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}  # of the file, by the weights'
PACKAGES = ("gguf", "sentencepiece")  # what the converter imports and gemfleet does not


def check_converter(formats: Sequence[str], model: Path | None = None) -> None:
    """Raise UserError if a GGUF file is asked for and cannot be written. model: the base's folder, if it is here"""
    if "gguf" not in formats:
        return
    _command()
    if model is not None and not (model / "tokenizer.model").is_file():
        raise UserError(
            f"output.formats asks for gguf, but the model in {model} has no tokenizer.model, from which llama.cpp's "
            "converter makes Gemma 3's vocabulary; put the file there, or leave gguf out"
        )


def write_gguf(merged: Path, target: Path) -> None:
    """Convert the merged model in a folder to one file, with its numbers as they are. Raises UserError if it fails."""
    command = [*_command(), str(merged), "--outfile", str(target), "--outtype", TYPES[stored_dtype(merged)]]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not target.is_file():
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise UserError(
            f"llama.cpp's converter could not write output.formats' gguf: {said}; a run that has trained is published "
            "without it by `gemfleet resume RUN --set output.formats=[adapter]`"
        )


def _command() -> list[str]:
    """The beginning of the converter's command line. Raises UserError where it is not installed."""
    checkout = os.environ.get(VARIABLE)
    if checkout is None:
        found = shutil.which(CONVERTER)
        if found is None:
            raise UserError(
                f"output.formats asks for gguf, but llama.cpp's {CONVERTER} is not on PATH, and {VARIABLE} is not set; "
                f"run: git clone https://github.com/ggml-org/llama.cpp, and set {VARIABLE} to that folder"
            )
        return [found]
    script = Path(checkout).expanduser() / CONVERTER
    if not script.is_file():
        raise UserError(f"{VARIABLE} is {checkout!r}, which has no {CONVERTER}; set it to a checkout of llama.cpp")
    lacking = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if lacking:
        raise UserError(
            f"llama.cpp's converter needs {' and '.join(lacking)}, which are not installed; run: "
            "pip install 'gemfleet[gguf]', or leave gguf out of output.formats"
        )
    return [sys.executable, str(script)]
