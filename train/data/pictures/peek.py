"""Whether a run's data hold pictures, as far as their first rows tell: known before any of them is read."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from ...config.sections.data import DataConfig, DataSet
from ...errors import UserError
from ..readers import LOOKAHEAD, Row, is_hub_id, open_set
from ..shapes.conversation import Picture
from .files import PictureFiles
from .rows import with_pictures


def holds_pictures(data: DataConfig, hub: bool = True) -> bool:
    """Whether one of the first rows of a set has a picture. None is opened.

    hub: whether to load sets of the hub for that. A set that cannot be opened counts as without; whoever reads it tells
    """
    sets = [*data.train_sets(), *data.eval_sets()]
    return any(_has_some(one) for one in sets if hub or not is_hub_id(one.path))


def _has_some(data: DataSet) -> bool:
    try:
        rows = with_pictures(open_set(data), data, _Unread(data.section.pictures, None)).rows
        return any(isinstance(row, Row) and row.pictures > 0 for row in islice(rows, LOOKAHEAD))
    except UserError:
        return False


class _Unread(PictureFiles):
    def read(self, value: Any, folder: Path | None = None) -> Picture:
        return Picture("")
