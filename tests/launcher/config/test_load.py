"""Configuration files: everything wrong is said at once, in words, and nothing a person writes ends in a traceback."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from gemfleet.launcher.config.load import dump_config, load_config, shown_config
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.train.config.train_file import TrainFile
from gemfleet.train.errors import UserError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MINIMAL = "train:\n  model: demo\n  data: {train: demo}\n"


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


def test_minimal_file_gets_defaults_and_round_trips(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, MINIMAL))
    assert config.train.lora.r == 16
    assert config.cluster.workers == "auto"
    dumped = dump_config(config)
    assert "global: 32" in dumped
    assert load_config(write(tmp_path, dumped, "resolved.yaml")) == config


def test_json_reads_like_yaml(tmp_path: Path) -> None:
    content = {"name": "a", "train": {"model": "demo", "data": {"train": "demo"}, "batch": {"global": 8}}}
    from_json = load_config(write(tmp_path, json.dumps(content), "run.json"))
    assert from_json == load_config(write(tmp_path, yaml.safe_dump(content)))


def test_one_process_knows_every_key_of_a_file() -> None:
    """`python -m train` cannot import the launcher's model, so it names the keys itself."""
    assert set(TrainFile.model_fields) == set(LaunchConfig.model_fields)


def test_trackers_and_webhooks_are_read_and_never_show_a_secret(tmp_path: Path) -> None:
    """`on` is a key, though YAML takes it for true; and no message repeats an address."""
    section = "notify: [{url: https://hooks.example/T0/abc, on: [failed], secret: GEMFLEET_NOTIFY_KEY}]\n"
    config = load_config(write(tmp_path, f"{MINIMAL}{section}trackers: [{{type: wandb, mode: offline}}]\n"))
    assert (config.notify[0].on, config.notify[0].place) == (("failed",), "https://hooks.example")
    assert load_config(write(tmp_path, dump_config(config), "resolved.yaml")) == config
    assert "T0" not in shown_config(dump_config(config))
    for text, said in {
        "notify: [{url: ftp://host/T0}]": "notify[0].url: is no address of a webhook; give https://HOST/PATH",
        "notify: [{url: https://host/T0, on: [done]}]": "notify[0].on",
        "notify: [{url: https://host/T0, secret: T0 b}]": "notify[0].secret: give a text or null",
        "notify: [{url: https://host/T0, secret: whsec_T0}]": "notify[0].secret: is a secret itself",
        "notify: [https://host/T0]": "notify[0]: give a section with the keys `url`, `on`, `format`, `secret`",
        "notify: {url: https://host/T0}": "notify: give a list of sections with the keys `url`, `on`",
        "trackers: [{type: mlflow, uri: 'http://T0:T0@host'}]": "put them into $MLFLOW_TRACKING_USERNAME",
        "trackers: [{type: mlflow, uri: mlruns}]": "trackers[0].uri: is no address of MLflow; give",
        "trackers: [{type: mlflow, project: x}]": "trackers[0]: project is no field of a tracker of type mlflow",
    }.items():
        lines = "\n".join(problems(write(tmp_path, f"{MINIMAL}{text}\n")))
        assert said in lines
        assert "T0" not in lines


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "+1e-4", "1.e-4", "0.0001", "1.0e-4"])
def test_scientific_notation_is_a_number(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, MINIMAL + f"  optim: {{learning_rate: {text}}}\n")
    assert load_config(path).train.optim.learning_rate == pytest.approx(1e-4)


def test_overrides_are_yaml_and_win(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "  lora: {r: 4}\n")
    config = load_config(
        path, ["train.lora.r=8", "train.optim.learning_rate=1e-3", "train.evaluation.every=never", "name=x"]
    )
    assert (config.train.lora.r, config.train.optim.learning_rate, config.name) == (8, 1e-3, "x")
    assert config.train.evaluation.every == "never"


def test_every_problem_is_reported_at_once_with_field_value_and_remedy(tmp_path: Path) -> None:
    text = (
        "train:\n  model: demo\n  data: {train: demo, max_lenght: 3}\n  lora: {r: 0}\n"
        "  optim: {schedule: cosin, betas: [0.9]}\n  evaluation: {every: weekly}\ncluster: {workers: none}\n"
    )
    lines = problems(write(tmp_path, text))
    assert lines[0].endswith("has 6 problems:")
    said = "\n".join(lines)
    assert "train.data.max_lenght: unknown key; did you mean `max_length`?" in said
    assert "train.lora.r: found 0; give a whole number greater than 0" in said
    assert "train.optim.schedule: found 'cosin'; give one of `linear`, `cosine`" in said
    assert "did you mean `cosine`?" in said
    assert "train.optim.betas" in said
    assert (
        "train.evaluation.every: found 'weekly'; give one of `epoch`, `never` or a whole number greater than 0" in said
    )
    assert "cluster.workers: found 'none'; give `auto` or a whole number of at least 1" in said


def test_a_misspelt_override_is_explained_like_the_file(tmp_path: Path) -> None:
    lines = problems(write(tmp_path, MINIMAL), "train.lora.rr=8", "oops", "train.seed=[")
    assert any("train.lora.rr: unknown key; did you mean `r`?" in line for line in lines)
    assert any("--set 'oops': give KEY=VALUE" in line for line in lines)
    assert any("--set 'train.seed=['" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "give a mapping"),
        ("just words\n", "give a mapping"),
        ("train: {model: a\n", "cannot be read as YAML"),
        (MINIMAL + "train: {}\n", "the key `train` appears a second time in line 4"),
        (MINIMAL + "  optim: {learning_rate: .inf}\n", "train.optim.learning_rate: found inf; give a finite number"),
        (MINIMAL + "cluster: {1: 1}\n", "the key 1 is not a text"),
        (MINIMAL + "name: a b\n", "name: found 'a b'"),
        (MINIMAL + "name: 2024-01-01\ncluster: {max_failures: true}\n", "cluster.max_failures: found True"),
        ("train: &a {model: *a}\n", "train.data: missing"),
        ("train: !!python/object/apply:os.system [ls]\n", "cannot be read as YAML"),
    ],
)
def test_unusable_files_are_one_clear_error(tmp_path: Path, text: str, said: str) -> None:
    assert said in "\n".join(problems(write(tmp_path, text)))


def test_missing_file_folder_duplicates_in_json_and_binary(tmp_path: Path) -> None:
    assert "does not exist" in problems(tmp_path / "none.yaml")[0]
    assert "is a folder" in problems(tmp_path)[0]
    assert "the key `a` appears twice" in problems(write(tmp_path, '{"a": 1, "a": 2}', "twice.json"))[0]
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in problems(binary)[0]


def test_a_conflict_between_fields_keeps_its_own_sentence(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "  optim: {schedule: constant, warmup_ratio: 0.1}\n")
    assert "use `constant_with_warmup`" in "\n".join(problems(path))
    path = write(tmp_path, MINIMAL + "  optim: {schedule: constant}\n")
    config = load_config(path)
    path.write_text(dump_config(config))  # as a run's folder keeps it, for `gemfleet resume`
    assert load_config(path) == config


keys = st.text(max_size=5) | st.sampled_from(
    ["train", "cluster", "name", "model", "data", "lora", "optim", "betas", "every", "evaluation", "global", "r"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(keys, values, max_size=4))
def test_no_content_gives_a_traceback(tmp_path: Path, content: dict[str, Any]) -> None:
    _loads_or_explains(write(tmp_path, yaml.safe_dump(content)))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(max_size=60), override=st.text(max_size=20), name=st.sampled_from(["a.yaml", "a.json"]))
def test_no_bytes_and_no_override_give_a_traceback(tmp_path: Path, garbage: bytes, override: str, name: str) -> None:
    (tmp_path / name).write_bytes(garbage)
    _loads_or_explains(tmp_path / name)
    _loads_or_explains(write(tmp_path, MINIMAL), override)


def _loads_or_explains(path: Path, *overrides: str) -> None:
    with contextlib.suppress(UserError):
        load_config(path, overrides)


def test_a_storage_with_credentials_in_it_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert load_config(path, ["cluster.storage=s3://bucket/runs"]).cluster.storage == "s3://bucket/runs"
    (line,) = problems(path, "cluster.storage=s3://key:secret@bucket/runs")[1:]
    assert "cluster.storage" in line
    assert "read from the environment" in line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.lora.target_modules=[]", "train.lora.target_modules: found [], which names no module"),
        ("train.lora.target_modules=['']", "which names no module"),
        (
            "train.optim.betas=[1.0, 1.0]",
            "train.optim.betas: found [1.0, 1.0]; give two numbers of at least 0 and",
        ),
        ("train.optim.betas=[-1, 0.9]", "train.optim.betas: found [-1.0, 0.9]"),
        ("train.optim.betas=[.nan, 0.9]", "train.optim.betas[0]: found nan; give a finite number"),
        ("train.seed=99999999999999999999999", "train.seed: found 99999999999999999999999; give a whole number of at"),
        ("train.batch.global=99999999999999999999999", "train.batch.global: found"),
        ("train.batch.micro=99999999999999999999999", "train.batch.micro: found"),
        ("train.lora.r=99999999999999999999999", "train.lora.r: found"),
        ("train.data.max_length=99999999999999999999999", "train.data.max_length: found"),
        ("train.data.limit=99999999999999999999999", "train.data.limit: found"),
        ("train.max_steps=99999999999999999999999", "train.max_steps: found"),
        ("train.epochs=1.0e+300", "train.epochs: found 1e+300; give a number greater than 0 and of at most 1000000"),
        ("train.model=''", "train.model: found ''"),
        ("train.data.train=''", "train.data.train: found ''"),
        ("train.data.columns.text=''", "train.data.columns.text: found ''"),
    ],
)
def test_values_out_of_range_are_told(tmp_path: Path, override: str, said: str) -> None:
    assert said in "\n".join(problems(write(tmp_path, MINIMAL), override))
