"""Every kind of data set is read; every fault is a named row or one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gemfleet.train.errors import UserError
from gemfleet.train.readers import BadRow, Row, open_rows

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


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_each_file_kind(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    assert values(str(path)) == ROWS
    assert open_rows(str(path)).columns == ("prompt", "completion")
    assert values(str(path), limit=1) == ROWS[:1]


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
