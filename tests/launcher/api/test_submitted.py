"""What a submitted configuration may name: nothing that opens a file or a connection of the head's, unless allowed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from gemfleet.launcher.api.allowed import Allowed
from gemfleet.launcher.api.problems import ApiError
from gemfleet.launcher.api.refusals import refused
from gemfleet.launcher.api.submissions import checked_config
from gemfleet.launcher.config.reports import NotifyConfig, TrackerConfig
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.train.config.sections.data import DataSetConfig
from pydantic import BaseModel
from support.servers.api_live import Live

LISTED = (DataSetConfig, TrackerConfig, NotifyConfig)
NEVER_OPENED = {"predict.answer_after"}  # it is looked for in rows
ADDRESSES = (
    *("git+https://host/repo", "git+ssh://me@host/repo", "git+me@host:repo", "git+file:///srv/repo", "GIT+https://h/r"),
    *("git@host:repo", "host:repo", "ssh://host/repo", "https://host/x", "http:host", "s3://bucket/x", "gs://bucket/x"),
    *("hf://datasets/x/y", "file:/etc/passwd", "ext::sh -c id", " git+https://host/repo", "ftp://host/x", "//host/x"),
    *(
        "git+https://host/ok/../evil",
        "git+https://host/ok%2f..%2fevil",
        "git+https://host/okay",
        "git+https://me@host/ok",
    ),
)


def with_value(field: str, value: Any) -> dict[str, Any]:
    """A valid configuration with this value at a dotted field."""
    content: dict[str, Any] = {"train": {"model": "demo", "data": {"train": "demo"}}}
    *sections, last = field.split(".")
    section = content
    for name in sections:
        if name.endswith("[0]"):
            section[name[:-3]] = [{"path": "demo"}]
            section = section[name[:-3]][0]
        else:
            inner = section.get(name)
            inner = inner if isinstance(inner, dict) else {}
            section[name] = inner
            section = inner
    section[last] = value
    return content


def text_fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every field that takes any text, dotted; those of choices and patterns too, and of the first of a list."""
    for name, field in model.model_fields.items():
        dotted = f"{prefix}{field.alias or name}"
        kinds = list(flat(field.annotation))
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from text_fields(kind, f"{dotted}[0]." if kind in LISTED else f"{dotted}.")
        if str in kinds:
            yield dotted


def flat(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from flat(inner)


def problems(content: dict[str, Any], allowed: Allowed = Allowed()) -> dict[str, str]:
    return dict(refused(content, allowed))


@pytest.mark.parametrize("value", ["/etc/passwd", "../x", "~/x", "git+ssh://host/x", "me@host:x", "https://host/x"])
def test_no_field_takes_a_path_or_an_address_that_is_not_allowed(value: str) -> None:
    fields = set(text_fields(LaunchConfig)) - NEVER_OPENED
    assert {"trackers[0].uri", "notify[0].url", "notify[0].secret"} < fields
    assert {"train.model", "train.deepspeed.config", "cluster.storage", "output.deliver.repository"} < fields
    assert {field for field in fields if not problems(with_value(field, value))} == set()


@pytest.mark.parametrize("field", ["train.model", "train.data.train", "train.data.eval", "cluster.storage"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_no_address_makes_the_head_connect(field: str, address: str) -> None:
    allowed = Allowed(sources=("git+https://host/ok",), deliveries=("git+https://host/ok",))
    assert list(problems(with_value(field, address), allowed)) == [field]


def test_allowed_addresses_pass_with_all_below_them() -> None:
    allowed = Allowed(sources=("git+https://host/ok", "git+git@host:", "s3://bucket/data/"))
    for address in (
        "git+https://host/ok",
        "git+https://host/ok/repo.git#main",
        "git+git@host:a/b",
        "s3://bucket/data/x",
    ):
        assert problems(with_value("train.model", address), allowed) == {}
    assert problems(with_value("cluster.storage", "s3://bucket/data/x"), allowed) != {}  # read from, not written to


@pytest.mark.parametrize(
    ("kind", "repository", "place"),
    [
        ("hub", "owner/name", "hub:owner"),
        ("git", "https://host/group/repo", "git+https://host/group"),
        ("s3", "s3://bucket/results/x", "s3://bucket/results"),
    ],
)
def test_results_go_to_allowed_places_only(kind: str, repository: str, place: str) -> None:
    content = with_value("output.deliver", {"type": kind, "repository": repository})
    assert list(problems(content)) == ["output.deliver.repository"]
    assert problems(content, Allowed(deliveries=(place,))) == {}
    assert problems(content, Allowed(sources=(place,))) != {}
    assert problems(content, Allowed(deliveries=(place + "x",))) != {}


@pytest.mark.parametrize(
    ("section", "entry", "field", "place"),
    [
        ("trackers", {"type": "mlflow", "uri": "http://mlflow:5000/x"}, "trackers[0].uri", "http://mlflow:5000"),
        ("trackers", {"type": "mlflow"}, "trackers[0].uri", None),  # the head's own server
        ("trackers", {"type": "mlflow", "uri": "file:///srv/mlflow"}, "trackers[0].uri", "file:///srv/mlflow"),
        ("trackers", {"type": "wandb", "entity": "team", "project": "p"}, "trackers[0]", "wandb:team"),
        ("notify", {"url": "http://169.254.169.254/latest"}, "notify[0].url", "http://169.254.169.254"),
        ("notify", {"url": "https://hooks/a", "secret": "HF_TOKEN"}, "notify[0].secret", None),
    ],
)
def test_runs_report_to_allowed_places_only(section: str, entry: dict[str, str], field: str, place: str | None) -> None:
    content = with_value(section, [entry])
    assert field in problems(content)
    assert entry.get("url", "http://169") not in str(problems(content))  # it may be a secret
    for allowed in (Allowed(sources=(place or "x",)), Allowed(reports=((place or "x") + "x",))):
        assert field in problems(content, allowed)
    if place is not None:
        assert problems(content, Allowed(reports=(place,))) == {}
        checked_config(content, Allowed(reports=(place,)))


def test_a_project_of_the_heads_own_user_is_refused_without_saying_where_webhooks_may_be() -> None:
    content = with_value("trackers", [{"type": "wandb", "project": "team"}])  # of whoever the head's key belongs to
    said = problems(content, Allowed(reports=("wandb:team", "https://hooks/services/T0SECRET")))["trackers[0]"]
    assert "wandb:team" in said
    assert "T0SECRET" not in said


@pytest.mark.parametrize("field", ["train.data.train", "train.data.eval"])
def test_every_data_set_of_a_list_and_every_pattern_stays_where_it_is_allowed(tmp_path: Path, field: str) -> None:
    root = tmp_path / "root"
    (root / "set").mkdir(parents=True)
    allowed = Allowed(roots=(root,), sources=("git+https://host/ok",))
    pattern, deeper = str(root / "set" / "*.jsonl.gz"), str(root / "**" / "[ab].jsonl")
    good = ["demo", {"path": "git+https://host/ok/data"}, {"path": pattern, "weight": 2}, deeper, "owner/name"]
    assert problems(with_value(field, good), allowed) == {}
    assert problems(with_value(field, pattern), allowed) == {}
    for value in (
        *("/etc/*.conf", f"{root}/*/../../x.jsonl", f"{root}x/*.jsonl", "../*.jsonl", "~/*.jsonl", "data/*.jsonl"),
        *("git+https://host/evil", "s3://bucket/*.jsonl", "loader.py", "/etc/passwd"),
    ):
        assert list(problems(with_value(field, ["demo", value]), allowed)) == [f"{field}[1]"], value
        assert list(problems(with_value(field, ["demo", {"path": value}]), allowed)) == [f"{field}[1].path"], value
    (root / "set" / "out").symlink_to("/etc")
    assert "link that leads out" in problems(with_value(field, pattern), allowed)[field]


def test_hub_ids_and_the_packaged_demo_pass() -> None:
    for model in ("demo", "google/gemma-3-270m-it", "imdb", "_owner/a.b-c"):
        assert problems(with_value("train.model", model)) == {}
    assert problems(with_value("train.data.train", "demo:korean")) == {}


def test_pictures_come_from_allowed_folders_alone_and_never_from_an_address(tmp_path: Path) -> None:
    allowed, folders = Allowed(roots=(tmp_path / "root",)), "train.data.pictures.folders"
    (tmp_path / "root" / "pictures").mkdir(parents=True)
    assert problems(with_value(folders, [str(tmp_path / "root" / "pictures")]), allowed) == {}
    for outside in (str(tmp_path), str(tmp_path / "root" / ".."), "pictures", "/"):
        assert list(problems(with_value(folders, [outside]), allowed)) == [f"{folders}[0]"]
    addresses = "train.data.pictures.addresses"
    assert problems(with_value(addresses, False)) == {}
    for value in (True, 1, "yes"):
        assert addresses in problems(with_value(addresses, value), allowed)


def test_a_folder_is_searched_for_links_that_lead_out(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "set" / "deep").mkdir(parents=True)
    outside.mkdir()
    allowed, content = Allowed(roots=(root,)), with_value("train.data.train", str(root / "set"))
    (root / "set" / "rows.jsonl").write_text("{}\n")
    (root / "set" / "again.jsonl").symlink_to("rows.jsonl")
    (root / "set" / "round").symlink_to(root)
    assert problems(content, allowed) == {}
    (root / "other").mkdir()
    (root / "set" / "deep" / "beside").symlink_to(root / "other")
    (root / "other" / "out.csv").symlink_to(outside / "private")  # dangling or not makes no difference
    assert "link that leads out" in problems(content, allowed)["train.data.train"]


def test_lists_that_name_files_elsewhere_and_pipes_are_refused(tmp_path: Path) -> None:
    allowed = Allowed(roots=(tmp_path,))
    content = with_value("train.data.train", str(tmp_path))
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    assert problems(content, allowed) == {}
    for name in ("../../x.arrow", "/srv/x.arrow"):
        (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        assert "state.json" in problems(content, allowed)["train.data.train"]
    (tmp_path / "state.json").unlink()
    os.mkfifo(tmp_path / "rows.jsonl")
    assert "neither a file nor a folder" in problems(content, allowed)["train.data.train"]


def test_a_deepspeed_file_outside_is_never_opened_and_answers_tell_nothing_of_it(tmp_path: Path) -> None:
    """A pipe that nobody writes to would hold whoever opens it."""
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "there.json").write_text('{"train_batch_size": "SECRET"}')
    answers = set()
    for name in ("pipe.json", "there.json", "missing.json"):
        with pytest.raises(ApiError) as error:
            checked_config(with_value("train.deepspeed.config", str(tmp_path / name)), Allowed())
        answers.add(json.dumps([problem.model_dump() for problem in error.value.errors or []]))
    assert len(answers) == 1
    assert "SECRET" not in answers.pop()


def test_a_chat_template_is_free_but_its_file_has_to_lie_below_a_root(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jinja")
    with pytest.raises(ApiError):
        checked_config(with_value("train.data.chat_template", str(tmp_path / "pipe.jinja")), Allowed())
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "mine.jinja").write_text(template)
    for value in (template, str(tmp_path / "mine.jinja")):
        config = checked_config(with_value("train.data.chat_template", value), Allowed(roots=(tmp_path,)))
        assert config.train.data.chat_template == template


def test_a_deepspeed_file_below_a_root_is_read_and_checked_like_its_content(tmp_path: Path) -> None:
    path, allowed = tmp_path / "ds.json", Allowed(roots=(tmp_path,))
    content = with_value("train.deepspeed.config", str(path))
    path.write_text('{"zero_optimization": {"overlap_comm": true}}')
    assert checked_config(content, allowed).train.deepspeed.config == {"zero_optimization": {"overlap_comm": True}}
    for inside in ('{"wandb": {"enabled": true}}', '{"aio": {"path": "/etc/x"}}', '{"x": ' * 200_000, "[" * 2000, "no"):
        path.write_text(inside)
        with pytest.raises(ApiError):
            checked_config(content, allowed)
    with path.open("w") as file:
        file.truncate(1 << 30)  # must not be read whole
    with pytest.raises(ApiError) as error:
        checked_config(content, allowed)
    assert "1 MiB" in str(error.value.errors)


def test_numbers_and_texts_that_no_configuration_holds_are_422(live: Live) -> None:
    kind = {"Content-Type": "application/json"}
    for written in ("NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400, '"\\ud800"', '"a\\u001b[2Jb"'):
        body = json.dumps({"config": with_value("train.optim.learning_rate", 0.5)}).replace("0.5", written)
        problem = live.post("/api/v1/runs", 422, content=body, headers=kind)
        assert "train.optim.learning_rate" in [error["field"] for error in problem["errors"]], written
    deep = json.dumps({"config": with_value("train.lora.target_modules", ["\ud800"])})
    live.post("/api/v1/runs", 422, content=deep, headers=kind)
    nested = json.dumps({"config": with_value("train.deepspeed.config", {"\ud800": [float("nan")]})})
    live.post("/api/v1/runs", 422, content=nested, headers=kind)
    assert live.submitter.started == []
