"""Keeps small copies of the pictures that the first predictions are about, for the board. They are not published."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray.exceptions
from gemfleet.launcher.data_view.pictures import MOST, thumbnails
from gemfleet.launcher.runs.folder import ANSWERED_PICTURES_FILE
from gemfleet.train.errors import first_line
from gemfleet.train.interfaces import BlockSource
from gemfleet.train.model.predict import Question

log = logging.getLogger("gemfleet.launcher")
MOST_ANSWERS = 8


def small_pictures(source: BlockSource, asked: Sequence[Question]) -> list[list[str]]:
    """For each of the first MOST_ANSWERS questions its pictures, as `data:` addresses; none where they were lost."""
    ids = [np.array(question.pictures[:MOST], np.int64) for question in asked[:MOST_ANSWERS]]
    try:
        return [thumbnails(source.pixels(some)) if len(some) else [] for some in ids]
    except ray.exceptions.RayError as error:
        log.warning("the board shows answers without their pictures: %s", first_line(error))
        return []


def keep_pictures(run_folder: Path, pictures: list[list[str]]) -> None:
    """Write them into the run's folder, in the order of predictions.jsonl. Those of an earlier launch go."""
    file = run_folder / ANSWERED_PICTURES_FILE
    if any(pictures):
        file.write_text(json.dumps(pictures))
    else:
        file.unlink(missing_ok=True)
