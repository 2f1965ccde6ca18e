"""Turns each problem that pydantic found into one line: the dotted field, the value found, and the remedy."""

from __future__ import annotations

import difflib
import reprlib
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo

from .foreign_keys import name_here

NOUNS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}
PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}
BOUNDS = ((Gt, "gt", "greater than"), (Ge, "ge", "of at least"), (Lt, "lt", "less than"), (Le, "le", "of at most"))


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each wrong field, in the file's order. The failed branches of a union share one line."""
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        path, owner, field = locate(problem["loc"], model)
        if path.partition("[")[0] in lines:
            continue
        lines.setdefault(path, f"{path or 'the file'}: {_sentence(problem, owner, field, model)}")
    return list(lines.values())


def locate(loc: Iterable[int | str], model: type[BaseModel]) -> tuple[str, type[BaseModel] | None, FieldInfo | None]:
    """The dotted path, the section that owns the last key, and its field (None for an unknown key).

    After the field, pydantic's location names the branches of a union; they are left out here.
    """
    path = ""
    owner: type[BaseModel] | None = None
    section: type[BaseModel] | None = model
    field: FieldInfo | None = None
    for part in loc:
        if isinstance(part, int):  # an element of a list; all its sections are of one kind
            path += f"[{part}]"
            continue
        if field is not None and part in (branches := _branches(field)):
            section = branches[part]
            continue
        if section is None:
            continue
        path += f".{part}" if path else str(part)
        owner, field = section, _field(section, part)
        section = _section(field) if field else None
    return path, owner, field


def _sentence(problem: Any, owner: type[BaseModel] | None, field: FieldInfo | None, whole: type[BaseModel]) -> str:
    kind, found = problem["type"], problem["input"]
    if kind == "extra_forbidden" and owner:
        key = str(problem["loc"][-1])
        elsewhere = name_here(key, whole)
        return f"unknown key; {elsewhere}" if elsewhere else f"unknown key{_suggestion(key, keys_of(owner))}"
    if kind == "missing" and field:
        return f"missing; give {describe(field.annotation, field.metadata)}{_why(field)}"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if kind == "invalid_key":
        return f"the key {shown(found)} is not a text; quote it or correct it"
    if field is None:
        return f"found {shown(found)}; {problem['msg']}"
    guess = difflib.get_close_matches(found, _choices(field.annotation), 1) if isinstance(found, str) else []
    hint = f"; did you mean `{guess[0]}`?" if guess else ""
    annotation = get_args(field.annotation)[0] if _is_element(problem["loc"], field) else field.annotation
    value = f"found {shown(found)}; " if field.repr else ""  # fields without `repr` may hold a secret
    return f"{value}give {describe(annotation, field.metadata)}{_why(field)}{hint}"


def describe(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """A type in words: `a whole number of at least 1`, `one of `a`, `b``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [m for item in arguments[1:] for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return describe(arguments[0], inner)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a, metadata if a in NOUNS and a is not type(None) else ()) for a in arguments)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + _listed(arguments)
    if origin is list:
        return f"a list of {PLURALS.get(arguments[0], 'values')}"
    if origin is tuple and arguments[-1] is Ellipsis:
        if isinstance(arguments[0], type) and issubclass(arguments[0], BaseModel):
            return f"a list of sections with the keys {_listed(keys_of(arguments[0]))}"
        chosen = get_args(arguments[0]) if get_origin(arguments[0]) is Literal else ()
        return f"a list of {_listed(chosen) or PLURALS.get(arguments[0], 'values')}"
    if origin is tuple:
        return f"a list of {len(arguments)} {PLURALS.get(arguments[0], 'values')}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a section with the keys {_listed(keys_of(annotation))}"
    bounds = [f"{words} {getattr(m, name)}" for m in metadata for kind, name, words in BOUNDS if isinstance(m, kind)]
    return NOUNS.get(annotation, "a value") + (f" {' and '.join(bounds)}" if bounds else "")


def _is_element(loc: tuple[int | str, ...], field: FieldInfo) -> bool:
    """Whether the problem is one whole section of a list of sections."""
    arguments = get_args(field.annotation)
    in_list = get_origin(field.annotation) is tuple and arguments[-1] is Ellipsis and isinstance(loc[-1], int)
    return in_list and isinstance(arguments[0], type) and issubclass(arguments[0], BaseModel)


def keys_of(model: type[BaseModel]) -> list[str]:
    """The keys of a section as a file spells them."""
    return [field.alias or name for name, field in model.model_fields.items()]


def shown(value: Any) -> str:
    """A value in at most a line, however deep or long it is."""
    short = reprlib.Repr()
    short.maxlevel, short.maxdict, short.maxlist, short.maxstring, short.maxother = 2, 3, 3, 60, 60
    return "null" if value is None else short.repr(value)


def _suggestion(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, 1, cutoff=0.5)
    close = close or [k for k in known if key and (k.startswith(key) or key.startswith(k))][:1]
    return f"; did you mean `{close[0]}`?" if close else f"; the keys here are {_listed(known)}"


def _field(model: type[BaseModel], key: Any) -> FieldInfo | None:
    by_key = {field.alias or name: field for name, field in model.model_fields.items()} | dict(model.model_fields)
    return by_key.get(key)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, also one that may be null; None for a plain value."""
    for annotation in (field.annotation, *get_args(field.annotation)):
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
    return None


def _branches(field: FieldInfo) -> dict[Any, type[BaseModel] | None]:
    """The section of each tag, for a field that tags tell apart; None where the tag stands for a plain value."""
    tagged = [argument for argument in get_args(field.annotation) if get_origin(argument) is Annotated]
    kinds = {item.tag: get_args(a)[0] for a in tagged for item in get_args(a)[1:] if isinstance(item, Tag)}
    return {
        tag: kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None for tag, kind in kinds.items()
    }


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [a for a in get_args(annotation) if isinstance(a, str)]
    return [choice for argument in get_args(annotation) for choice in _choices(argument)]


def _why(field: FieldInfo) -> str:
    return f" ({field.description})" if field.description else ""


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(f"`{value}`" for value in values)
