"""Reads a run's published folder for the API: the adapter as an archive, and answers beside the truth.

A folder is opened once and its files relative to it, never through a link: a result that is published again meanwhile
mixes nothing, and nothing leads out of the run's folder.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from gemfleet.launcher.runs.folder import ANSWERED_PICTURES_FILE
from gemfleet.train.checkpoint.state import ADAPTER_FILE

from .archive import Archive, Member, archive_of, close_all, header_of
from .prediction_schemas import PredictionPage, PredictionView
from .problems import ApiError
from .redaction import redact, redact_text

FOLDER = "output"
TEXTS = ("prompt", "reference", "prediction")
PICTURE = "data:image/jpeg;base64,"
OTHER_FILES = ("predictions.jsonl", "metrics.json")
OTHER_ENDS = (".gguf",)
LARGEST_LINE_BYTES = 4 << 20
LARGEST_METRICS_BYTES = 1 << 16
SHOWN_CHARACTERS = 4000  # of a text
READ_CHARACTERS = 2 * SHOWN_CHARACTERS  # is redacted before it is cut, so that no part of a secret is left


def has_adapter(run_folder: Path) -> bool:
    """Whether `open_adapter` finds one. No link counts: it may lead anywhere."""
    folder = run_folder / FOLDER
    return not folder.is_symlink() and (file := folder / ADAPTER_FILE).is_file() and not file.is_symlink()


def open_adapter(run_folder: Path, name: str) -> Archive:
    """The adapter as published, with tokenizer and card, without whole checkpoints and other forms of the model.

    Raises ApiError 404 where the run has published none.
    """
    members: list[Member] = []
    try:
        with _folder(run_folder / FOLDER) as folder:
            names = [entry.name for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
            if ADAPTER_FILE not in names:
                raise FileNotFoundError
            for one in sorted(filter(_of_adapter, names)):
                file = _open(folder, one)
                facts = os.fstat(file.fileno())
                members.append(Member(header_of(f"{name}/{one}", facts.st_size, facts.st_mtime), file, facts.st_size))
    except OSError:
        close_all(members)
        raise ApiError(404, "this run has published no adapter; its checkpoints can be downloaded") from None
    return archive_of(name, members)


def _of_adapter(name: str) -> bool:
    return not name.startswith(".") and name not in OTHER_FILES and not name.endswith(OTHER_ENDS)


def prediction_page(run_folder: Path, run_id: str, after: int, limit: int, differing: bool) -> PredictionPage:
    """Published answers behind the one of number `after`, without secrets; empty where the run has none.

    differing: only answers that are not their reference
    """
    try:
        pictures = _pictures(run_folder)
        with _folder(run_folder / FOLDER) as folder:
            metrics = _metrics(folder)
            with _open(folder, "predictions.jsonl") as lines:
                wanted = (one for one in _predictions(lines, pictures, after) if not (differing and one.same))
                found = list(islice(wanted, limit + 1))
    except OSError:
        return PredictionPage(run_id=run_id, metrics={}, data=[], has_more=False)
    return PredictionPage(run_id=run_id, metrics=metrics, data=found[:limit], has_more=len(found) > limit)


def _predictions(lines: BinaryIO, pictures: list[list[str]], after: int) -> Iterator[PredictionView]:
    """Each line behind the one of number `after`, as it is shown. One that is damaged, or too long, is left out."""
    number, whole = 0, True
    while line := lines.readline(LARGEST_LINE_BYTES):
        continues, whole = not whole, line.endswith(b"\n")
        number += not continues
        if continues or number <= after:
            continue
        try:
            content = json.loads(line)
            prompt, reference, prediction = (_shown(content[name]) for name in TEXTS)
            yield PredictionView(
                number=number,
                prompt=prompt,
                reference=reference,
                prediction=prediction,
                same=_same(content),
                pictures=pictures[number - 1] if number <= len(pictures) else [],
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            continue


def _same(content: Mapping[str, str]) -> bool:
    return content["reference"].strip() == content["prediction"].strip()


def _shown(text: str) -> str:
    whole = redact_text(text[:READ_CHARACTERS])
    return whole if len(whole) <= SHOWN_CHARACTERS else f"{whole[:SHOWN_CHARACTERS]} …"


def _pictures(run_folder: Path) -> list[list[str]]:
    """Those of the first answers, see `ANSWERED_PICTURES_FILE`; none where they are damaged, or no pictures."""
    try:
        with _folder(run_folder) as folder, _open(folder, ANSWERED_PICTURES_FILE) as file:
            content: Any = json.loads(file.read(LARGEST_LINE_BYTES))
        kept = [[str(address) for address in some] for some in content]
    except (OSError, ValueError, TypeError, RecursionError):
        return []
    return [[address for address in some if address.startswith(PICTURE)] for some in kept]


def _metrics(folder: int) -> dict[str, float | None]:
    try:
        with _open(folder, "metrics.json") as file:
            content: Any = json.loads(file.read(LARGEST_METRICS_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {str(name): redact(value) for name, value in content.items() if isinstance(value, int | float)}


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    """A descriptor of a folder that is no link."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        os.close(folder)


def _open(folder: int, name: str) -> BinaryIO:
    """Raises OSError for what is no plain file."""
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{name} is no plain file")
    return os.fdopen(file, "rb")
