"""Every kind of data set is read; every fault is a named row or one sentence."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gemfleet.train.data.readers import BadRow, Row, open_rows
from gemfleet.train.errors import UserError

ROWS = [{"prompt": "one ", "completion": "1"}, {"prompt": "두 ", "completion": "2"}]


def values(source: str, **options: object) -> list[dict[str, object]]:
    return [row.values for row in open_rows(source, **options).rows if isinstance(row, Row)]  # type: ignore[arg-type]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n")
    elif kind == "json":
        path.write_text(json.dumps({"data": ROWS}))
    elif kind == "csv":
        path.write_text("\ufeffprompt,completion\none ,1\n두 ,2\n")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def packed(path: Path, compression: str, parts: int = 1) -> Path:
    """The file, compressed as so many parts end to end; it takes the place of the original."""
    import pyarrow as pa

    codec, content = pa.Codec({"gz": "gzip", "zst": "zstd"}[compression]), path.read_bytes()
    packed = path.with_name(f"{path.name}.{compression}")
    cuts = [len(content) * number // parts for number in range(parts + 1)]
    pieces = [content[first:last] for first, last in itertools.pairwise(cuts)]
    with packed.open("wb") as file:
        for piece in pieces:
            part = path.with_name("part")
            with pa.CompressedOutputStream(str(part), codec.name) as stream:
                stream.write(piece)
            file.write(part.read_bytes())
            part.unlink()
    path.unlink()
    return packed


@pytest.mark.parametrize("compression", ["", "gz", "zst"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_each_file_kind(tmp_path: Path, kind: str, compression: str) -> None:
    path = write(tmp_path, kind)
    path = packed(path, compression, parts=2) if compression else path
    assert values(str(path)) == ROWS
    assert open_rows(str(path)).columns == ("prompt", "completion")
    assert values(str(path), limit=1) == ROWS[:1]


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_compressed_file_that_is_damaged_is_one_sentence(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": str(number * 7919)}) + "\n" for number in range(9000)))
    path = packed(path, compression)
    whole = path.read_bytes()
    for content in (whole[:-50], b'{"text": "not packed at all"}\n' * 9):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"rows\.jsonl\.{compression} cannot be unpacked \(.*\); fetch"):
            list(open_rows(str(path)).rows)


def test_a_pattern_is_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / "deep" / name).mkdir(parents=True)
        write(tmp_path / "deep" / name, "jsonl")
    packed(tmp_path / "deep" / "a" / "rows.jsonl", "gz")
    write(tmp_path / "deep", "csv")
    (tmp_path / "deep" / "notes.txt").write_text("x")
    source = open_rows(str(tmp_path / "deep" / "**" / "*.*"))
    assert [row.name for row in source.rows] == [
        *("rows.jsonl.gz line 1", "rows.jsonl.gz line 3", "rows.jsonl line 1", "rows.jsonl line 3"),
        *("rows.csv line 2", "rows.csv line 3"),
    ]
    assert source.note == "Not read: notes.txt."
    assert values(str(tmp_path / "deep" / "?" / "rows.jsonl*"), limit=3) == [*ROWS, ROWS[0]]
    (tmp_path / "[1].jsonl").write_text('{"text": "a name, not a pattern"}')
    assert values(str(tmp_path / "[1].jsonl")) == [{"text": "a name, not a pattern"}]
    with pytest.raises(UserError, match=r"no \.jsonl, .* file fits the pattern .*\*\.tsv; check it"):
        open_rows(str(tmp_path / "*.tsv"))
    with pytest.raises(UserError, match=r"fits the pattern .*\*\.txt \(it fits notes\.txt\)"):
        open_rows(str(tmp_path / "deep" / "*.txt"))


def test_a_folder_is_its_files_in_order_and_a_saved_data_set_is_read(tmp_path: Path) -> None:
    import datasets

    write(tmp_path, "jsonl")
    write(tmp_path, "csv")
    assert [row.name for row in open_rows(str(tmp_path)).rows][::3] == ["rows.csv line 2", "rows.jsonl line 3"]
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert values(str(tmp_path / "saved")) == ROWS
    datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "many"))
    assert values(str(tmp_path / "many"), split="test") == ROWS
    with pytest.raises(UserError, match=r"train\.data\.split is 'train', but .* has 'test'"):
        open_rows(str(tmp_path / "many"))


def test_bad_rows_are_named_and_do_not_end_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": \n{"text": "\xff"}\n[1]\n{"text": "\\ud800"}\n{}\n{"text": "b"}\n')
    rows = list(open_rows(str(path)).rows)
    assert [(row.name, row.reason) for row in rows if isinstance(row, BadRow)] == [
        ("train.jsonl line 2", "not valid JSON"),
        ("train.jsonl line 3", "not valid UTF-8"),
        ("train.jsonl line 4", "not an object"),
        ("train.jsonl line 5", "not valid UTF-8"),
        ("train.jsonl line 6", "no columns"),
    ]
    assert [row.values["text"] for row in rows if isinstance(row, Row)] == ["a", "b"]
    table = tmp_path / "train.csv"
    table.write_bytes(b"text,more\na,1\nb\n\xff,2\nc,3\n")
    bad = [(row.name, row.reason) for row in open_rows(str(table)).rows if isinstance(row, BadRow)]
    assert bad == [("train.csv line 3", "wrong number of cells"), ("train.csv line 4", "not valid UTF-8")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, "does not exist"),
        ("empty.jsonl", "\n", "is empty"),
        ("notes.txt", "hello", "unknown extension"),
        ("broken.json", "{", "is not valid JSON"),
        ("wrong.json", "3", "must hold a list"),
        ("broken.parquet", "no", "not a readable Parquet file"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        open_rows(str(tmp_path / name))


def test_an_empty_folder_and_an_unreachable_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="nor is it a saved data set"):
        open_rows(str(tmp_path))
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be loaded from Hugging Face"):
        open_rows("nobody/nothing-of-this-name")


def test_the_demonstration_data_is_real_and_distinct() -> None:
    pytest.importorskip("chatterbot_corpus")
    english, korean = values("demo"), values("demo:korean")
    assert len(english) > 500
    assert len({json.dumps(row) for row in english}) == len(english)
    assert any("가" <= letter <= "힣" for row in korean for letter in str(row["completion"]))
    with pytest.raises(UserError, match=r"no language 'klingon'; it has .*korean"):
        open_rows("demo:klingon")


def long_cell(lines: int) -> str:
    return "\n".join(f"line {number} of a long cell, with a comma" for number in range(lines))


def test_a_csv_cell_of_any_length_is_one_cell(tmp_path: Path) -> None:
    text, one_line = long_cell(9000), "x" * 400_000
    path = tmp_path / "rows.csv"
    path.write_text(f'text\nshort\n"{text}"\n"{one_line}"\n\nlast\n')
    rows = list(open_rows(str(path)).rows)
    assert [row.values["text"] for row in rows if isinstance(row, Row)] == ["short", text, one_line, "last"]
    assert [row.name for row in rows] == [f"rows.csv line {line}" for line in (2, 3, 9003, 9005)]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ('text\na\n"never closed\nb\nc\n', "line 3 .* goes on to line 5"),
        ('text,more\n"open,1\nb,"2"\nc,3\n', "line 2 .* goes on to line 3"),
    ],
)
def test_a_quote_that_swallows_what_follows_is_refused(tmp_path: Path, content: str, lines: str) -> None:
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(UserError, match=rf"rows\.csv has a quote in the record of {lines}"):
        list(open_rows(str(tmp_path / "rows.csv")).rows)


def test_a_wrong_quote_within_one_line_spoils_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,more\na,1\n"b"c,2\nd,5" screen\n"e,4')
    rows = list(open_rows(str(path)).rows)
    assert [(row.name, row.reason) for row in rows if isinstance(row, BadRow)] == [
        ("rows.csv line 3", "not valid CSV"),
        ("rows.csv line 5", "not valid CSV"),
    ]
    assert [row.values["more"] for row in rows if isinstance(row, Row)] == ["1", '5" screen']


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "rows.csv").write_text("prompt,completion,completion,,\na,b,c,,\n")
    table = pa.table([pa.array(["a"])] * 3, names=["prompt", "completion", "completion"])
    pq.write_table(table, tmp_path / "rows.parquet")
    for kind in ("csv", "parquet"):
        with pytest.raises(UserError, match=rf"rows\.{kind} has two columns named 'completion'"):
            open_rows(str(tmp_path / f"rows.{kind}"))
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b", "text": "c"}\n{"m": [{"role": 1, "role": 2}]}\n')
    bad = [row for row in open_rows(str(tmp_path / "rows.jsonl")).rows if isinstance(row, BadRow)]
    assert [(row.reason, row.detail) for row in bad] == [
        ("a key that appears twice", "'text'"),
        ("a key that appears twice", "'role'"),
    ]
    (tmp_path / "rows.json").write_text('[{"text": "b", "text": "c"}]')
    with pytest.raises(UserError, match=r"rows\.json has the key 'text' twice"):
        open_rows(str(tmp_path / "rows.json"))


def test_a_header_that_is_no_text_and_a_pointer_of_git_lfs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes("text,größe\na,b\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"header of the data file .* is not CSV in UTF-8"):
        open_rows(str(tmp_path / "rows.csv"))
    for kind in ("jsonl", "json", "csv", "parquet"):
        (tmp_path / f"rows.{kind}").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(UserError, match=rf"rows\.{kind} is a pointer of git-lfs"):
            open_rows(str(tmp_path / f"rows.{kind}"))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
@pytest.mark.parametrize(
    ("pack", "sentence"),
    [
        (gzip.compress, r"packed with gzip; add \.gz"),
        (lambda content: b"\x28\xb5\x2f\xfd" + content, r"packed with zstd; add \.zst"),
        (lambda content: content.decode().encode("utf-16"), "in UTF-16; save it in UTF-8"),
        (lambda content: b"PAR1" + content, r"in Parquet; name it \.parquet"),
        (lambda content: b"PK\x03\x04" + content, "a ZIP archive; unpack it"),
    ],
)
def test_content_of_another_kind_than_the_name_says_is_named(
    tmp_path: Path, name: str, pack: Any, sentence: str
) -> None:
    (tmp_path / name).write_bytes(pack(b'{"text": "a"}\n'))
    with pytest.raises(UserError, match=rf"the data file .*{name} is {sentence}"):
        open_rows(str(tmp_path / name))


@pytest.mark.parametrize("saved", [False, True])
def test_a_table_gives_an_object_no_fields_of_other_rows(tmp_path: Path, saved: bool) -> None:
    import datasets
    import pyarrow.parquet as pq

    rows = [
        {"tools": [{"name": "f", "arguments": {"x": 1}}]},
        {"tools": [{"name": "g", "arguments": {"y": [None, 2]}}]},
    ]
    table = datasets.Dataset.from_list([*rows, {"tools": None}])
    if saved:
        table.save_to_disk(str(tmp_path / "rows.parquet"))
    else:
        pq.write_table(table.data.table, tmp_path / "rows.parquet")
    found = [row.values for row in open_rows(str(tmp_path / "rows.parquet")).rows if isinstance(row, Row)]
    assert found == [*rows, {"tools": None}]


def test_parquet_that_is_damaged_inside_is_one_sentence(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": [f"row number {i} " * 20 for i in range(3000)]}), path, compression="snappy")
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(byte ^ 255 for byte in content[200:260])
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"rows\.parquet is damaged after row 0"):
        list(open_rows(str(path)).rows)


def test_parquet_text_that_is_not_utf8_is_a_named_row(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    offsets, letters = pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"\xff\xfeab")
    text = pa.Array.from_buffers(pa.string(), 2, [None, offsets, letters])
    for number, column in enumerate((text, pa.StructArray.from_arrays([text], ["inner"]))):
        pq.write_table(pa.table({"text": column}), tmp_path / f"{number}.parquet")
        bad, good = open_rows(str(tmp_path / f"{number}.parquet")).rows
        assert bad == BadRow(f"{number}.parquet row 1", "not valid UTF-8", "byte 1")
        assert isinstance(good, Row)
    import datasets

    datasets.Dataset(pa.table({"text": text})).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="row 1 of the data set saved cannot be read"):
        open_rows(str(tmp_path / "saved"))


def test_a_file_that_fails_while_it_is_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from gemfleet.train.data.files import file_readers

    def fails(path: Path) -> tuple[Iterator[Row], int]:
        def rows() -> Iterator[Row]:
            yield Row("one", {"text": "a"})
            raise OSError(errno.EIO, "Input/output error")

        return rows(), 2

    monkeypatch.setitem(file_readers.READERS, ".jsonl", fails)
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"rows\.jsonl cannot be read \(Input/output error\)"):
        open_rows(str(tmp_path / "rows.jsonl"))
