"""Reads a YAML or JSON configuration file, applies the `--set` overrides, and tells every problem at once."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import UserError
from .errors import explain, shown
from .paths import found_at
from .schema import TrainConfig

MAX_FILE_BYTES = 1 << 20
Model = TypeVar("Model", bound=BaseModel)


def load_validated(path: Path, overrides: Sequence[str], model: type[Model]) -> Model:
    """The file as an instance of `model`. Raises UserError whose message has one line for each problem."""
    return validated(read_mapping(path), path, overrides, model)


def validated(raw: dict[str, Any], path: Path, overrides: Sequence[str], model: type[Model]) -> Model:
    """The mapping as an instance of `model`, after the overrides have changed it in place.

    Raises UserError, which names `path` and has one line for each problem.
    """
    problems = [problem for override in overrides if (problem := _apply_override(raw, override))]
    problems += [f"{where}: found {value}; give a finite number" for where, value in _non_finite(raw)]
    try:
        config = model.model_validate(raw, context={"folder": path.resolve().parent})
    except ValidationError as error:
        problems += explain(error, model)
    if problems:
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"{path} has {count}:\n" + "\n".join(f"  {line}" for line in problems))
    return config


def beside(config_path: Path, train: TrainConfig) -> TrainConfig:
    """Replaces each relative path that only the configuration's folder has by the path in that folder.

    So a configuration finds its data wherever the command runs, and also after its folder travelled to the cluster.
    """
    folder = config_path.resolve().parent

    def found(value: str) -> str:
        if found_at(value) or not found_at(folder / value):
            return value
        return str(folder / value)

    data = train.data.with_paths({field: found(path) for field, path in train.data.paths().items()})
    pictures = data.pictures.model_copy(update={"folders": tuple(map(found, data.pictures.folders))})
    data = data.model_copy(update={"pictures": pictures})
    adapter = None if train.adapter is None else found(train.adapter)
    return train.model_copy(update={"model": found(train.model), "adapter": adapter, "data": data})


def read_mapping(path: Path) -> dict[str, Any]:
    """The file's content, not validated. Raises UserError if the file cannot be read or holds no mapping."""
    text = _read_text(path)
    try:
        content = _parse_json(text) if path.suffix.lower() == ".json" else parse_yaml(text)
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be a configuration") from None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as {_language(path)}: {_one_line(error)}") from None
    if content is None:
        raise UserError(f"{path} is empty; give a mapping (a run needs at least train.model and train.data.train)")
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {shown(content)}; give a mapping (of a run: with a `train` section)")
    return content


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} is larger than 1 MiB; give a configuration file, not the data")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"the configuration file {path} does not exist; check the path (now in {Path.cwd()})") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give the configuration file inside it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; give a YAML or JSON file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _apply_override(raw: dict[str, Any], override: str) -> str | None:
    """Applies `train.lora.r=8` in place. Returns what is wrong with the override itself, else None."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        return f"--set {override!r}: give KEY=VALUE with the dotted name of a field, as in --set train.lora.r=8"
    try:
        value = parse_yaml(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        return f"--set {override!r}: the value is not YAML ({_one_line(error)}); quote it"
    section = raw
    for key in keys[:-1]:
        inner = section.get(key)
        if not isinstance(inner, dict):
            inner = section[key] = {}
        section = inner
    section[keys[-1]] = value
    return None


def _non_finite(value: Any, where: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """The place and value of each infinity and NaN, which pass most range checks. The depth limit ends circles."""
    if isinstance(value, float) and not math.isfinite(value):
        yield where, str(value)
    elif isinstance(value, dict) and depth < 6:
        for key, inner in value.items():
            yield from _non_finite(inner, f"{where}.{key}" if where else str(key), depth + 1)
    elif isinstance(value, list) and depth < 6:
        for index, inner in enumerate(value):
            yield from _non_finite(inner, f"{where}[{index}]", depth + 1)


def parse_yaml(text: str) -> Any:
    """Reads YAML as people mean it: `1e-4` is a number, a date stays text, and a repeated key is an error."""
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:bool":  # `on:` is a key, and no key is true or false
                key.tag = "tag:yaml.org,2002:str"
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ValueError(f"the key `{key.value}` appears a second time in line {line}; keep one of them")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique_keys) if text.strip() else None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key `{twice}` appears twice; keep one of them")
    return content


def _language(path: Path) -> str:
    return "JSON" if path.suffix.lower() == ".json" else "YAML"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
