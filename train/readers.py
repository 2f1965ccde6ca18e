"""Rows of a data set, each with a name to find it by. A row that cannot be read is a value, not an exception."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from .errors import UserError

LOOKAHEAD = 100  # rows whose columns stand for the whole data set's


@dataclass(frozen=True)
class Row:
    """One row: `name` as in `train.jsonl line 17`, `values` by column."""

    name: str
    values: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read. `reason` is alike for like faults; `detail` says more about this one."""

    name: str
    reason: str
    detail: str = ""


Rows = Iterator[Row | BadRow]


@dataclass(frozen=True)
class RowSource:
    """An opened data set: its rows (to be read once), how many (None: not known before the end), its columns."""

    name: str
    rows: Rows
    total: int | None
    columns: tuple[str, ...]


def open_rows(source: str, split: str = "train", limit: int | None = None) -> RowSource:
    """Open `demo`, `demo:LANGUAGE`, a file, a folder or a hub id. UserError when it is missing, unknown or empty.

    Columns are those of the first readable rows; there are none when not one row can be read.
    """
    rows, total = _open(source, split)
    rows = islice(rows, limit)
    head = list(islice(rows, LOOKAHEAD))
    if not head:
        raise UserError(f"the data set {source} is empty; give one with at least one row")
    while not any(isinstance(row, Row) for row in head) and (more := list(islice(rows, LOOKAHEAD))):
        head += more
    columns = dict.fromkeys(key for row in head if isinstance(row, Row) for key in row.values)
    known = min(total, limit) if total is not None and limit is not None else total
    return RowSource(source, chain(head, rows), known, tuple(columns))


def _open(source: str, split: str) -> tuple[Rows, int | None]:
    if source == "demo" or source.startswith("demo:"):
        from .demo import demo_data_rows

        rows = demo_data_rows(source.partition(":")[2] or "english")
        return _named_rows(rows, f"{source} row"), len(rows)
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(path, split)
    if path.is_file():
        return _open_file(path)
    if source.startswith((".", "/", "~")) or path.suffix.lower() in _READERS or source.count("/") > 1:
        raise UserError(f"the data file {source} does not exist; check train.data and the folder you started in")
    return _open_hub(source, split)


def _open_file(path: Path) -> tuple[Rows, int | None]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"the data file {path} has an unknown extension; gemfleet reads {', '.join(_READERS)}")
    try:
        return reader(path)
    except OSError as error:
        raise UserError(
            f"the data file {path} cannot be read ({error.strerror or error}); check its permissions"
        ) from error


def _open_folder(folder: Path, split: str) -> tuple[Rows, int | None]:
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        return _open_saved_dataset(folder, split)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in _READERS)
    if not files:
        raise UserError(f"the data folder {folder} has no {', '.join(_READERS)} file in it, nor is it a saved data set")
    opened = [_open_file(path) for path in files]
    return chain.from_iterable(rows for rows, _ in opened), sum(total or 0 for _, total in opened)


def _read_jsonl(path: Path) -> tuple[Rows, int | None]:
    def rows() -> Rows:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _json_row(f"{path.name} line {number}", line)

    with path.open("rb") as file:
        total = sum(1 for line in file if line.strip())
    return rows(), total


def _json_row(name: str, line: bytes) -> Row | BadRow:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return BadRow(name, "not valid UTF-8", f"byte {error.start + 1}")
    except (ValueError, RecursionError) as error:
        return BadRow(name, "not valid JSON", str(error))
    return _checked(name, values)


def _checked(name: str, values: Any) -> Row | BadRow:
    if not isinstance(values, dict):
        return BadRow(name, "not an object", f"a {type(values).__name__}")
    if not values:
        return BadRow(name, "no columns")
    try:
        json.dumps(values, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return BadRow(name, "not valid UTF-8", "half of a surrogate pair")
    return Row(name, values)


def _read_json(path: Path) -> tuple[Rows, int | None]:
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"the data file {path} is not valid JSON ({error}); one object a line belongs in .jsonl"
        ) from error
    items = content.get("data") if isinstance(content, dict) else content
    if not isinstance(items, list):
        raise UserError(f'the data file {path} must hold a list of objects, or {{"data": [...]}}')
    return _named_rows(items, f"{path.name} row"), len(items)


def _read_csv(path: Path) -> tuple[Rows, int | None]:
    def rows() -> Rows:
        # Undecodable bytes become lone surrogates, so that one bad row does not end the file.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            while True:
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    yield BadRow(f"{path.name} line {reader.line_num}", "not valid CSV", str(error))
                    continue
                if cells is None:
                    return
                if cells:
                    yield _csv_row(f"{path.name} line {reader.line_num}", header, cells)

    return rows(), None


def _csv_row(name: str, header: list[str], cells: list[str]) -> Row | BadRow:
    if len(cells) != len(header):
        return BadRow(name, "wrong number of cells", f"{len(cells)} where the header has {len(header)}")
    return _checked(name, dict(zip(header, cells, strict=True)))


def _read_parquet(path: Path) -> tuple[Rows, int | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise UserError(f"the data file {path} is not a readable Parquet file ({error})") from error

    def rows() -> Rows:
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path.name} row {number}", values)

    return rows(), file.metadata.num_rows


_READERS: dict[str, Callable[[Path], tuple[Rows, int | None]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _open_saved_dataset(folder: Path, split: str) -> tuple[Rows, int | None]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever a damaged folder makes of the library
        raise UserError(f"the data set in {folder} cannot be loaded ({error}); save it again") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise UserError(f"train.data.split is {split!r}, but {folder} has {', '.join(map(repr, loaded))}")
        loaded = loaded[split]
    return _named_rows(loaded, f"{folder.name} row"), len(loaded)


def _open_hub(name: str, split: str) -> tuple[Rows, int | None]:
    import datasets

    try:
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises a dozen kinds for a wrong id, a wrong split and no network
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name!r} is not a data file here, and its split {split!r} cannot be loaded from Hugging Face ({first}); "
            "check the path or id, and the network of the head node"
        ) from error
    return _named_rows(loaded, f"{name} row"), len(loaded)


def _named_rows(items: Any, prefix: str) -> Rows:
    return (_checked(f"{prefix} {number}", values) for number, values in enumerate(items, 1))
