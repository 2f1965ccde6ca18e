"""Reads the rows of one data file: JSON lines, JSON, CSV or Parquet, perhaps compressed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ...errors import UserError, first_line
from ..rows import BadRow, Row, Rows, checked_row
from .compressed import CODECS, compression, ending, open_bytes

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# What a file begins with whose name promises a text, and what it is then. The rest of a sentence says the remedy.
OTHERS = {
    LFS_POINTER: "a pointer of git-lfs, not the data; fetch it with `git lfs pull`",
    b"\x1f\x8b": "packed with gzip; add .gz to its name",
    b"\x28\xb5\x2f\xfd": "packed with zstd; add .zst to its name",
    b"PAR1": "in Parquet; name it .parquet",
    b"PK\x03\x04": "a ZIP archive; unpack it",
    b"\xff\xfe": "in UTF-16; save it in UTF-8",
    b"\xfe\xff": "in UTF-16; save it in UTF-8",
}
CSV_CELL_CHARACTERS = 2**28  # Python's own limit of 131,072 would cut a long text in two
PARQUET_BATCH_ROWS = 1024


def open_file(path: Path) -> tuple[Rows, int | None]:
    """The rows of a file, which are read on demand, and how many there are (None: not known before the end).

    Raises UserError, now or while rows are read, for a fault of the whole file.
    """
    reader = READERS.get(ending(path))
    if reader is None:
        raise UserError(f"the data file {path} has an unknown extension; gemfleet reads {extensions()}")
    try:
        _refuse_others(path)
        rows, total = reader(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    return _guarded(path, rows), total


def is_data(path: Path) -> bool:
    """Whether the name is that of a data file."""
    return ending(path) in READERS


def extensions() -> str:
    """All extensions that are read, for a sentence."""
    return f"{', '.join(READERS)}, each also with {' or '.join(CODECS)}"


def _guarded(path: Path, rows: Rows) -> Rows:
    try:
        yield from rows
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    if compression(path) and error.errno is None:
        return UserError(f"the data file {path} cannot be unpacked ({first_line(error)}); fetch or compress it again")
    return UserError(
        f"the data file {path} cannot be read ({error.strerror or error}); check its permissions and its disk"
    )


def _refuse_others(path: Path) -> None:
    """Raises UserError for content of another kind than the name says. What is packed or Parquet is checked later."""
    with path.open("rb") as file:
        begin = file.read(max(map(len, OTHERS)))
    found = next((sentence for mark, sentence in OTHERS.items() if begin.startswith(mark)), None)
    if found and (found.startswith("a pointer") or not (compression(path) or ending(path) == ".parquet")):
        raise UserError(f"the data file {path} is {found}")


def _read_jsonl(path: Path) -> tuple[Rows, int | None]:
    def rows() -> Rows:
        with open_bytes(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _json_row(f"{path.name} line {number}", line)

    if compression(path):  # to count would be to unpack it twice
        return rows(), None
    with path.open("rb") as file:
        total = sum(1 for line in file if line.strip())
    return rows(), total


def _json_row(name: str, line: bytes) -> Row | BadRow:
    try:
        values = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        return BadRow(name, "not valid UTF-8", f"byte {error.start + 1}")
    except _TwiceError as error:
        return BadRow(name, "a key that appears twice", repr(error.args[0]))
    except (ValueError, RecursionError) as error:
        return BadRow(name, "not valid JSON", str(error))
    return checked_row(name, values)


class _TwiceError(ValueError):
    """A key of a JSON object appears twice."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise _TwiceError(_first_twice(key for key, _ in pairs))
    return content


def _first_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _read_json(path: Path) -> tuple[Rows, int | None]:
    try:
        with open_bytes(path) as file:
            content = json.loads(file.read().decode("utf-8-sig"), object_pairs_hook=_unique_keys)
    except _TwiceError as error:
        raise UserError(f"the data file {path} has the key {error.args[0]!r} twice in an object; keep one") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"the data file {path} is not valid JSON ({error}); one object a line belongs in .jsonl"
        ) from error
    items = content.get("data") if isinstance(content, dict) else content
    if not isinstance(items, list):
        raise UserError(f'the data file {path} must hold a list of objects, or {{"data": [...]}}')
    return named_rows(items, f"{path.name} row"), len(items)


def named_rows(items: Iterable[Any], prefix: str) -> Rows:
    """Parsed values as rows. Their names count from 1."""
    return (checked_row(f"{prefix} {number}", values) for number, values in enumerate(items, 1))


def _read_csv(path: Path) -> tuple[Rows, int | None]:
    rows = _csv_rows(path)
    first = next(rows, None)  # so the header is checked now
    return chain([] if first is None else [first], rows), None


def _csv_rows(path: Path) -> Rows:
    records = _csv_records(path)
    header = next(records, (1, []))[1]
    if isinstance(header, csv.Error) or any("\udc80" <= letter <= "\udcff" for name in header for letter in name):
        raise UserError(f"the header of the data file {path} is not CSV in UTF-8; save the file again")
    _refuse_twice(path, (name for name in header if name))
    for line, cells in records:
        name = f"{path.name} line {line}"
        if isinstance(cells, csv.Error):
            yield BadRow(name, "not valid CSV", str(cells))
        elif len(cells) != len(header):
            yield BadRow(name, "wrong number of cells", f"{len(cells)} where the header has {len(header)}")
        else:
            yield checked_row(name, dict(zip(header, cells, strict=True)))


def _csv_records(path: Path) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """The line on which each record begins, and its cells, or the error it has. Empty lines are left out.

    A fault within one line spoils only that record. After a wrong quote that spans lines nobody can tell where the
    next record begins, so such a file is refused.
    """
    csv.field_size_limit(CSV_CELL_CHARACTERS)
    # Bytes that are not UTF-8 become lone surrogates, so one bad row does not end the file.
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        while True:
            begins = reader.line_num + 1
            cells: list[str] | csv.Error | None
            try:
                cells = next(reader, None)
            except csv.Error as error:
                if reader.line_num != begins:
                    raise _swallows(path, begins, reader.line_num, error) from error
                cells = error
            if cells is None:
                return
            if cells != []:
                yield begins, cells


def _swallows(path: Path, begins: int, ends: int, error: csv.Error) -> UserError:
    return UserError(
        f"the data file {path} has a quote in the record of line {begins} that is not closed rightly and goes on "
        f"to line {ends} ({error}); close it, and write a quote inside a quoted cell twice"
    )


def _refuse_twice(path: Path, columns: Iterable[str]) -> None:
    name = _first_twice(columns)
    if name is not None:
        raise UserError(f"the data file {path} has two columns named {name!r}; rename or remove one of them")


def _read_parquet(path: Path) -> tuple[Rows, int | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Its table of contents stands at the end, so a compressed one is unpacked in memory.
        file = pq.ParquetFile(pa.BufferReader(open_bytes(path).read()) if compression(path) else path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"the data file {path} is not a readable Parquet file ({error})") from error
    _refuse_twice(path, file.schema_arrow.names)

    def rows() -> Rows:
        number = 0
        batches = file.iter_batches(batch_size=PARQUET_BATCH_ROWS)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise UserError(
                    f"the data file {path} is damaged after row {number} ({first_line(error)}); fetch it again"
                ) from error
            if batch is None:
                return
            yield from _parquet_rows(batch, path.name, number)
            number += batch.num_rows

    return rows(), file.metadata.num_rows


def _parquet_rows(batch: Any, name: str, before: int) -> Rows:
    """The rows of a record batch. A row without a Python value, as with text that is not UTF-8, is a BadRow."""
    try:
        values = [own_fields(row) for row in batch.to_pylist()]
    except Exception:  # the library has many kinds of errors, and one row can cause it: look at each row alone
        for index in range(batch.num_rows):
            yield _parquet_row(batch.slice(index, 1), f"{name} row {before + index + 1}")
        return
    for number, row in enumerate(values, before + 1):
        yield Row(f"{name} row {number}", row)


def own_fields(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table without the null fields of its structs.

    There, every object has the fields of all objects in its column: those of others, as of other tools, are null.
    """
    return {name: _own(value) for name, value in row.items()}


def _own(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _own(inner) for name, inner in value.items() if inner is not None}
    return [_own(inner) for inner in value] if isinstance(value, list) else value


def _parquet_row(batch: Any, name: str) -> Row | BadRow:
    try:
        return Row(name, own_fields(batch.to_pylist()[0]))
    except UnicodeDecodeError as error:
        return BadRow(name, "not valid UTF-8", f"byte {error.start + 1}")
    except Exception as error:
        return BadRow(name, "a value that cannot be read", first_line(error))


READERS: dict[str, Callable[[Path], tuple[Rows, int | None]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
