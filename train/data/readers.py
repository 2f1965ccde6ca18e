"""Opens a data set: the demonstration, a file, several by a pattern, a folder, or one of Hugging Face."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..config.paths import is_pattern
from ..config.sections.data import DataSet
from ..errors import UserError, first_line
from .files.file_readers import is_data, named_rows, open_file, own_fields
from .files.folders import FolderFiles, files_of_pattern, files_of_split, refuse_split
from .rows import BadRow, Row, Rows

__all__ = ["LOOKAHEAD", "BadRow", "Row", "RowSource", "files_of", "is_hub_id", "open_rows", "open_set"]

LOOKAHEAD = 100  # the columns of so many rows count as those of the whole data set


@dataclass(frozen=True)
class RowSource:
    """An opened data set: its rows, to be read once; how many (None: not known before the end); its columns.

    note: a sentence on how the data set was opened, for a person; may be empty
    """

    name: str
    rows: Rows
    total: int | None
    columns: tuple[str, ...]
    note: str = ""


def open_rows(source: str, split: str = "train", limit: int | None = None) -> RowSource:
    """Opens `demo`, `demo:LANGUAGE`, a file, a pattern, a folder or a hub id. Raises UserError if there are no rows.

    The columns are those of the first readable rows; none if no row can be read.
    """
    opened = _open(source, split)
    rows, total = islice(opened.rows, limit), opened.total
    head = list(islice(rows, LOOKAHEAD))
    if not head:
        raise UserError(f"the data set {source} is empty; give one with at least one row")
    while not any(isinstance(row, Row) for row in head) and (more := list(islice(rows, LOOKAHEAD))):
        head += more
    columns = dict.fromkeys(key for row in head if isinstance(row, Row) for key in row.values)
    known = min(total, limit) if total is not None and limit is not None else total
    return RowSource(source, chain(head, rows), known, tuple(columns), opened.note)


def open_set(data: DataSet) -> RowSource:
    """As `open_rows`, for a data set of the configuration."""
    return open_rows(data.path, data.split, data.limit)


def files_of(data: DataSet) -> FolderFiles | None:
    """The files that a data set is read from, and those beside them; None if it is not on this machine."""
    path = Path(data.path).expanduser()
    if data.path == "demo" or data.path.startswith("demo:"):
        from .demo import demo_data_files

        return FolderFiles(demo_data_files(data.path.partition(":")[2] or "english"), [])
    if path.is_dir():
        if _is_saved_dataset(path):
            return FolderFiles(sorted(found for found in path.rglob("*") if found.is_file()), [])
        return files_of_split(path, data.split)
    if path.is_file():
        return FolderFiles([path], [])
    return files_of_pattern(data.path, data.split) if is_pattern(data.path) else None


@dataclass(frozen=True)
class Opened:
    """See `RowSource`."""

    rows: Rows
    total: int | None
    note: str = ""


def _open(source: str, split: str) -> Opened:
    if source == "demo" or source.startswith("demo:"):
        from .demo import demo_data_rows

        refuse_split(source, split)
        rows = demo_data_rows(source.partition(":")[2] or "english")
        return Opened(named_rows(rows, f"{source} row"), len(rows))
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(path, split)
    if path.is_file():
        refuse_split(path, split)
        return Opened(*open_file(path))
    if is_pattern(source):
        return _open_files(files_of_pattern(source, split))
    if not is_hub_id(source):
        raise UserError(f"the data file {source} does not exist; check train.data and the folder you started in")
    return Opened(*_open_hub(source, split))


def is_hub_id(source: str) -> bool:
    """Whether a source can only mean a data set of Hugging Face: not the demonstration, nothing here, and no path."""
    path = Path(source).expanduser()
    if source == "demo" or source.startswith("demo:") or path.exists() or is_pattern(source):
        return False
    return not (source.startswith((".", "/", "~")) or is_data(path) or source.count("/") > 1)


def _open_folder(folder: Path, split: str) -> Opened:
    if _is_saved_dataset(folder):
        return Opened(*_open_saved_dataset(folder, split))
    return _open_files(files_of_split(folder, split))


def _is_saved_dataset(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file()


def _open_files(files: FolderFiles) -> Opened:
    """The rows of several files, one after the other."""
    opened = [open_file(path) for path in files.read]
    totals = [total for _, total in opened]
    parts = zip(files.read, opened, strict=True)
    return Opened(
        chain.from_iterable(_of_folder(rows, str(path.parent)) for path, (rows, _) in parts),
        None if None in totals else sum(total or 0 for total in totals),
        files.note(),
    )


def _of_folder(rows: Rows, folder: str) -> Rows:
    return (Row(row.name, row.values, folder) if isinstance(row, Row) else row for row in rows)


def _open_saved_dataset(folder: Path, split: str) -> tuple[Rows, int | None]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises many kinds for a damaged folder
        raise UserError(f"the data set in {folder} cannot be loaded ({error}); save it again") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise UserError(f"train.data.split is {split!r}, but {folder} has {', '.join(map(repr, loaded))}")
        loaded = loaded[split]
    elif str(loaded.split) != split:
        refuse_split(folder, split)
    return _dataset_rows(_undecoded(loaded), folder.name), len(loaded)


def _open_hub(name: str, split: str) -> tuple[Rows, int | None]:
    import datasets

    try:
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises many kinds for a wrong id, a wrong split and no network
        raise UserError(
            f"{name!r} is not a data file here, and its split {split!r} cannot be loaded from Hugging Face "
            f"({first_line(error)}); check the path or id, and the network of the head node"
        ) from error
    return _dataset_rows(_undecoded(loaded), name), len(loaded)


def _undecoded(loaded: Any) -> Any:
    """The data set with the files of its pictures, `bytes` or `path`, in place of what the library decodes of them."""
    import datasets

    def plain(feature: Any) -> Any:
        if isinstance(feature, datasets.Image):
            return datasets.Image(mode=feature.mode, decode=False)
        if isinstance(feature, datasets.List | datasets.LargeList):
            return type(feature)(plain(feature.feature))
        if isinstance(feature, dict):
            return {name: plain(inner) for name, inner in feature.items()}
        return [plain(inner) for inner in feature] if isinstance(feature, list) else feature

    features = plain(dict(loaded.features))
    return loaded if features == dict(loaded.features) else loaded.cast(datasets.Features(features))


def _dataset_rows(loaded: Any, name: str) -> Rows:
    """The rows of a `datasets.Dataset`. Raises UserError if one of them has no Python value."""
    number = 0
    try:
        for row in named_rows(map(own_fields, loaded), f"{name} row"):
            number += 1
            yield row
    except Exception as error:  # the library raises many kinds for a damaged file
        raise UserError(
            f"row {number + 1} of the data set {name} cannot be read ({first_line(error)}); save it again without it"
        ) from error
