"""Finds the weight files of a model folder, and reads from their headers what they hold.

All loaders and the merge follow one rule: the files that the index names, else `model.safetensors`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.files.file_readers import LFS_POINTER
from ..errors import UserError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
FLOATS = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}  # bytes of an element, by safetensors' name of its type
HEADER_LENGTH_BYTES = 8
MOST_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. start: its first byte, counted from the file's; nbytes: its length in bytes"""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


def entry_file(folder: Path) -> str:
    """The file that loading begins with: the index, if there is one."""
    return INDEX_FILE if (folder / INDEX_FILE).exists() or (folder / INDEX_FILE).is_symlink() else SINGLE_FILE


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All weights of a model folder by name, in the order of their files. UserError names a damaged file."""
    if entry_file(folder) == SINGLE_FILE:
        _refuse_lost_index(folder)
        return _read_header(folder / SINGLE_FILE)
    owners = _read_index(folder / INDEX_FILE)
    headers = {file: _read_header(folder / file) for file in sorted(set(owners.values()))}
    lost = next((name for name, file in owners.items() if name not in headers[file]), None)
    if lost is not None:
        raise _damaged(folder / owners[lost], f"lacks the weight {lost!r}, which {INDEX_FILE} says it holds")
    return {
        name: tensor for file, header in headers.items() for name, tensor in header.items() if owners.get(name) == file
    }


def weights_beside(folder: Path) -> list[str]:
    """The names of weight files that are not read: left-overs, other formats, adapters."""
    read = {tensor.file.name for tensor in stored_tensors(folder).values()}
    return sorted(p.name for p in folder.iterdir() if p.suffix in WEIGHT_SUFFIXES and p.name not in read)


def beside_note(folder: Path) -> str:
    """A sentence that names the weight files that are not read; empty if there are none."""
    names = weights_beside(folder)
    if not names:
        return ""
    return f"the model is read from {entry_file(folder)} alone; not read in {folder}: {', '.join(names)}"


def _refuse_lost_index(folder: Path) -> None:
    if (folder / SINGLE_FILE).exists() or (folder / SINGLE_FILE).is_symlink():
        return
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if any(re.search(r"-\d+-of-\d+\.safetensors$", name) for name in found):
        raise UserError(f"the model folder {folder} has parts of weights but no {INDEX_FILE}; fetch the folder again")
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    hint = f" ({', '.join(pickles[:2])} are pickles, which gemfleet never reads)" if pickles else ""
    named = f"; what it has is named otherwise: {', '.join(found[:3])}" if found else ""
    raise UserError(
        f"the model folder {folder} has no *.safetensors weights called {SINGLE_FILE} or named by {INDEX_FILE}"
        f"{hint}{named}; fetch or convert them first"
    )


def _read_index(path: Path) -> dict[str, str]:
    """The file's name of each tensor, by the tensor's name."""
    _see_that_it_is_here(path)
    try:
        owners = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        whole = bool(owners) and all(isinstance(file, str) for file in owners.values())
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        whole = False
    if not whole:
        raise _damaged(path, "is no index of weights")
    odd = next((file for file in owners.values() if Path(file).name != file), None)
    if odd is not None:
        raise _damaged(path, f"names {odd!r}, which is not a file beside it")
    return dict(owners)


def _read_header(path: Path) -> dict[str, StoredTensor]:
    _see_that_it_is_here(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
            header = file.read(length) if length <= min(size, MOST_HEADER_BYTES) else b""
        content = json.loads(header.decode("utf-8"))
        tensors = _parsed(path, content, HEADER_LENGTH_BYTES + length)
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, "is not a safetensors file") from error
    end = max((tensor.start + tensor.nbytes for tensor in tensors.values()), default=0)
    if not tensors or end != size:
        raise _damaged(path, f"has {size:,} bytes where its header speaks of {end:,}")
    return tensors


def _parsed(path: Path, content: dict[str, Any], data_start: int) -> dict[str, StoredTensor]:
    tensors = {}
    for name, entry in content.items():
        if name != "__metadata__":
            begin, end = map(int, entry["data_offsets"])
            shape = tuple(map(int, entry["shape"]))
            tensors[name] = StoredTensor(name, path, str(entry["dtype"]), shape, data_start + begin, end - begin)
            if entry["dtype"] in FLOATS and math.prod(shape) * FLOATS[entry["dtype"]] != end - begin:
                raise ValueError("a tensor's bytes are not those of its shape")
    return tensors


def _see_that_it_is_here(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise _damaged(path, f"is a link to {path.readlink()}, which does not exist")
    if not path.is_file():
        raise _damaged(path, "does not exist")
    refuse_pointer(path)


def refuse_pointer(path: Path) -> None:
    """Raises UserError if a model's file is only a pointer of git-lfs."""
    try:
        with path.open("rb") as file:
            first = file.read(len(LFS_POINTER))
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror or error})") from error
    if not first:
        raise _damaged(path, "is empty")
    if first == LFS_POINTER:
        raise UserError(f"{path} is a pointer of git-lfs, not the file; fetch it with `git lfs pull`")


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"the model's file {path} {what}; fetch the model folder again")
