"""Models and data of an object store: copied once, without pickles, and nothing beyond what the address names."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from gemfleet.launcher.sources.fetch import check_sources, fetch_once, fetch_sources
from gemfleet.launcher.sources.objects import ObjectAddress, checked_name, fetch_objects, parse_object_address
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.readers import Row, open_set
from gemfleet.train.errors import UserError
from gemfleet.train.model.resolve import check_model_folder
from support.servers.s3_objects import one_bucket, put

ROWS = b'{"text": "a cat"}\n'
HOSTILE = [
    "s3://",
    "s3://bucket/../other",
    "s3://bucket//x",
    "s3://bucket/x?endpoint_override=evil.example",
    "s3://bucket/a\nb",
    "s3://B/x",
    "gs://bucket/./x",
    "file:///etc",
    "http://host/bucket",
    "--s3://bucket/x",
    "s3://bucket/x\\y",
]


@pytest.fixture
def s3() -> Iterator[None]:
    with one_bucket():
        yield


@pytest.mark.parametrize("address", HOSTILE)
def test_hostile_addresses_are_refused(address: str) -> None:
    with pytest.raises(UserError, match="not an address of an object store"):
        parse_object_address(address)


def test_the_usual_addresses_are_taken_and_none_with_a_credential() -> None:
    assert parse_object_address("s3://my-bucket/models/gemma 3/") == ObjectAddress("s3", "my-bucket/models/gemma 3")
    assert str(parse_object_address("gs://data.example.org")) == "gs://data.example.org"
    with pytest.raises(UserError, match="holds a credential"):
        parse_object_address("s3://key:secret@bucket/x")
    config = TrainConfig.model_validate({"model": "s3://bucket/../x", "data": {"train": "demo"}})
    with pytest.raises(UserError, match="not an address"):
        check_sources(config)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "a//b", "a\\..\\b", "", "."])
def test_a_key_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no path below it"):
        checked_name(name, ObjectAddress("s3", "bucket"))


@pytest.mark.usefixtures("s3")
def test_sources_become_folders_once_until_they_change(tmp_path: Path) -> None:
    put({"models/tiny/config.json": b"{}", "models/tiny/deep/w.safetensors": b"w" * 9_000_000})
    put({"data/train.jsonl": ROWS, "data/test.jsonl": ROWS, "data/README.md": b"x", "database/secret.jsonl": b"{}"})
    config = TrainConfig.model_validate({"model": "s3://bucket/models/tiny", "data": {"train": "s3://bucket/data/"}})
    seen: list[tuple[int, int, str]] = []
    first = fetch_sources(config, tmp_path, lambda *facts: seen.append(facts))
    assert (Path(first.model) / "deep" / "w.safetensors").stat().st_size == 9_000_000
    assert Path(str(first.data.train)).read_bytes() == Path(str(first.data.eval)).read_bytes() == ROWS
    assert (8, 8, "MiB") in seen
    seen.clear()
    assert fetch_sources(config, tmp_path, lambda *facts: seen.append(facts)) == first
    assert seen == []
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".fetch") or path.name == "secret.jsonl"]
    memory = tmp_path / "memory.json"
    fetch_once(config, tmp_path, memory)
    put({"data/train.jsonl": ROWS * 2})
    assert fetch_once(config, tmp_path, memory).data == first.data  # a run that goes on keeps its data
    assert Path(str(fetch_sources(config, tmp_path).data.train)).read_bytes() == ROWS * 2


@pytest.mark.usefixtures("s3")
def test_every_data_set_of_a_list_is_fetched_and_kept(tmp_path: Path) -> None:
    put({"chat/train.jsonl.gz": gzip.compress(ROWS), "chat/test.jsonl": ROWS, "code.jsonl": ROWS * 2})
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.jsonl").write_bytes(ROWS)
    sets = [{"path": "s3://bucket/chat/", "weight": 3}, {"path": f"{tmp_path}/here/*.jsonl", "weight": 1}]
    data = {"train": sets, "eval": ["demo", {"path": "s3://bucket/code.jsonl"}]}
    config = TrainConfig.model_validate({"model": "demo", "data": data})
    memory = tmp_path / "memory.json"
    fetched = fetch_once(config, tmp_path, memory).data
    first, second = fetched.train_sets()
    assert (Path(first.path).name, first.share, second.path) == ("train.jsonl.gz", 0.75, f"{tmp_path}/here/*.jsonl")
    assert list(open_set(first).rows) == [Row("train.jsonl.gz line 1", {"text": "a cat"})]
    demo, code = fetched.eval_sets()
    assert (demo.path, code.name, Path(code.path).read_bytes()) == ("demo", "code", ROWS * 2)
    put({"code.jsonl": ROWS})
    assert fetch_once(config, tmp_path, memory).data == fetched  # a run that goes on keeps its data
    (tmp_path / "here" / "a.jsonl").unlink()
    with pytest.raises(UserError, match=r"\*\.jsonl is gone, and its source has changed since"):
        fetch_once(config, tmp_path, memory)


@pytest.mark.usefixtures("s3")
def test_one_file_is_data_too(tmp_path: Path) -> None:
    put({"data/train.jsonl": ROWS, "data/train.jsonl.bak": b"x"})
    config = TrainConfig.model_validate({"model": "demo", "data": {"train": "s3://bucket/data/train.jsonl"}})
    fetched = Path(str(fetch_sources(config, tmp_path).data.train))
    assert (fetched.name, fetched.read_bytes()) == ("train.jsonl", ROWS)
    assert [path.name for path in fetched.parent.iterdir()] == ["train.jsonl"]


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.usefixtures("s3")
def test_pickles_are_neither_fetched_nor_opened(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    config = json.dumps({"model_type": "gemma3_text"}).encode()
    put({"m/config.json": config, "m/pytorch_model.bin": pickle.dumps(Touch(sentinel)), "p/only.pkl": b"x"})
    folder = fetch_objects(parse_object_address("s3://bucket/m"), tmp_path)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    with pytest.raises(UserError, match=r"no \*\.safetensors weights"):
        check_model_folder(folder)
    with pytest.raises(UserError, match="no file that gemfleet reads"):
        fetch_objects(parse_object_address("s3://bucket/p"), tmp_path)
    assert not sentinel.exists()


def test_what_is_not_there_or_cannot_be_reached_is_one_sentence(
    s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in ("s3://bucket/none", "s3://no-such-bucket/x"):
        with pytest.raises(UserError, match="nothing at s3://"):
            fetch_objects(parse_object_address(address), tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"s3://bucket/x cannot be read \(.*; check the address .* AWS_ACCESS_KEY_ID"):
        fetch_objects(parse_object_address("s3://bucket/x"), tmp_path)
