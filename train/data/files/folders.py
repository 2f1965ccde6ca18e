"""Chooses the files of a folder or pattern that are one split, by their names: a run never trains on test data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ...config.paths import found_at
from ...errors import UserError
from .compressed import unpacked_name
from .file_readers import extensions, is_data

# The words in file names by which Hugging Face's `datasets` tells splits apart.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation", "holdout", "heldout"),
}
ENDINGS = r"(?:set|data|split)?$"  # as in `trainset`
NAMED = 10  # files named in one sentence; the rest are counted


@dataclass(frozen=True)
class FolderFiles:
    """read: the files of the split, in the order of their names; left: all else in the folder."""

    read: list[Path]
    left: list[Path]

    def note(self) -> str:
        """A sentence that names what is not read; empty if everything is read."""
        return f"Not read: {listed(self.left)}." if self.left else ""


def files_of_split(folder: Path, split: str) -> FolderFiles:
    """The files of a folder that belong to `split`. Raises UserError if there are none.

    If no file is named after a split, all are `train`. If some are, those without a split's name are not read.
    """
    there = sorted(path for path in folder.iterdir() if not path.name.startswith(".") or _is_data(path))
    data = [path for path in there if _is_data(path) and not path.name.startswith(".")]
    if not data:
        besides = f" (it holds {listed(there)})" if there else ""
        raise UserError(
            f"the data folder {folder} has no {extensions()} file in it{besides}, nor is it a saved data set"
        )
    splits = _splits(data, split)
    read = [path for path in data if split_of(path, split) == canonical(split)] if splits else data
    if not read or (not splits and canonical(split) != "train"):
        raise _no_such_split(f"the data folder {folder}", split, splits, data)
    return FolderFiles(read, [path for path in there if path not in read])


def files_of_pattern(pattern: str, split: str) -> FolderFiles:
    """The files that fit a pattern, sorted. Raises UserError if there are none, or none of `split`.

    Files that are all of one split are read whatever it is, as a single file is. Of files of several splits, only
    those of `split` are read.
    """
    there = found_at(pattern)
    data = [path for path in there if _is_data(path)]
    if not data:
        besides = f" (it fits {listed(there)})" if there else ""
        raise UserError(
            f"no {extensions()} file fits the pattern {pattern}{besides}; check it and the folder you started in"
        )
    splits = _splits(data, split)
    named_all = canonical(split) == "train" and len(splits) < 2
    read = data if named_all else [path for path in data if split_of(path, split) == canonical(split)]
    if not read:
        raise _no_such_split(f"the pattern {pattern}", split, splits, data)
    return FolderFiles(read, [path for path in there if path not in read])


def _splits(data: list[Path], asked: str) -> list[str]:
    """The splits after which the files are named."""
    return sorted({name for path in data if (name := split_of(path, asked))})


def _no_such_split(where: str, split: str, splits: list[str], data: list[Path]) -> UserError:
    found = f"files of {', '.join(map(repr, splits))}" if splits else "no file that is named after a split"
    return UserError(
        f"train.data.split is {split!r}, but {where} has {found} ({listed(data)}); "
        "name one of those, or name the file itself in train.data.train"
    )


def split_of(path: Path, asked: str) -> str | None:
    """The split that a file's name contains: `train-00000-of-00002.parquet` is `train`. `asked` counts as a split."""
    stem = unpacked_name(path).stem.lower()
    parts = re.split(r"[^a-z0-9]+|(?<=[a-z])(?=[0-9])", stem)
    words = [re.sub(ENDINGS, "", part) for part in parts]
    if asked.lower() in words or asked.lower() == stem:
        return canonical(asked)
    return next((split for split, names in SPLIT_WORDS.items() if not set(names).isdisjoint(words)), None)


def canonical(split: str) -> str:
    """The usual name of a split: `validation` for `val`. Other names stay."""
    return next((name for name, words in SPLIT_WORDS.items() if split.lower() in words), split.lower())


def refuse_split(path: str | Path, split: str) -> None:
    """Raises UserError if a single file is asked for a split other than `train` that its name does not contain."""
    if canonical(split) != "train" and split_of(Path(path), split) != canonical(split):
        raise UserError(
            f"train.data.split is {split!r}, but {path} has no splits, all of it would be read; remove train.data.split"
        )


def listed(paths: list[Path]) -> str:
    """Names of files, for a sentence. Folders end in a slash."""
    names = [path.name + ("/" if path.is_dir() else "") for path in paths[:NAMED]]
    more = f" and {len(paths) - NAMED:,} more" if len(paths) > NAMED else ""
    return ", ".join(names) + more


def _is_data(path: Path) -> bool:
    return path.is_file() and is_data(path)
