"""Mutated requests: a valid configuration, or problems that name keys; never anything else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from gemfleet.launcher.config.platform.convert import convert
from gemfleet.launcher.config.platform.write_yaml import to_yaml
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.train.config.load import parse_yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.platform_requests import REFERENCE, supported_request

NONSENSE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["None", "false", "", "1e400", "-1", "auto", "ext::sh -c id", "--upload-pack=id", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PATHS = [
    (*prefix, name)
    for prefix, section in [((), REFERENCE)]
    + [((name,), REFERENCE[name]) for name in REFERENCE if isinstance(REFERENCE[name], dict)]
    for name in section
]
MUTATIONS = st.lists(
    st.tuples(st.sampled_from(PATHS), st.sampled_from(["replace", "remove", "add"]), NONSENSE), min_size=1, max_size=6
)


def mutate(mutations: list[tuple[tuple[str, ...], str, Any]]) -> dict[str, Any]:
    content = supported_request()
    for path, action, value in mutations:
        inner: Any = content
        for part in path[:-1]:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if not isinstance(inner, dict):
            continue
        if action == "remove":
            inner.pop(path[-1], None)
        else:
            inner[path[-1] + ("_" if action == "add" else "")] = value
    return content


@settings(max_examples=500, deadline=None)
@given(MUTATIONS)
@example([(("train_model_parameters", "use_fsdp2"), "replace", True)])
def test_a_mutated_request_is_valid_or_refused_by_key(mutations: list[tuple[tuple[str, ...], str, Any]]) -> None:
    before = copy.deepcopy(request := mutate(mutations))
    conversion = convert(request, exists=lambda path: False)
    assert repr(request) == repr(before)
    for problem in conversion.problems:
        name, _, sentence = problem.partition(": ")
        assert sentence
        assert name.partition(" ")[0].partition(".")[0].rstrip("_") in {*REFERENCE, "the file"}
    if not conversion.problems:
        config = LaunchConfig.model_validate(conversion.content)
        assert LaunchConfig.model_validate(parse_yaml(to_yaml(conversion, "x"))) == config


def test_a_mutated_request_touches_no_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = copy.deepcopy(REFERENCE)
    hostile["model"]["model_repository"] = "ext::touch sentinel"
    hostile["dataset"]["dataset_repository"] = "--upload-pack=touch sentinel"
    convert(hostile)
    assert list(tmp_path.iterdir()) == []
