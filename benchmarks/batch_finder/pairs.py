"""Two sizes timed in turn, so that a machine that slows down or warms up hits both alike."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemfleet.train.batch_finder.probes.group import GroupSettings, ProbeGroup
from gemfleet.train.batch_finder.probes.process import LocalProbe
from gemfleet.train.batch_finder.setting import RankPlace, probe_tasks
from gemfleet.train.config.schema import TrainConfig

from .measure import Tell


@dataclass(frozen=True)
class Pair:
    """What was chosen and the best of all sizes. ratios: speed of the one as a share of the other's, by repeat."""

    chosen: int
    best: int
    ratios: tuple[float, ...]

    @property
    def share(self) -> float:
        """The median: one disturbed repeat does not decide."""
        return statistics.median(self.ratios)


def compare(
    config: TrainConfig, model_folder: Path, pairs: Sequence[tuple[int, int]], repeats: int, tell: Tell
) -> list[Pair]:
    """Each pair (chosen, best) in turn, `repeats` times, without a cap. The same size twice is a share of 1."""
    tasks = probe_tasks(config, [RankPlace(str(model_folder), 0, 1, 0)])
    with ProbeGroup([LocalProbe()], tasks, GroupSettings(0.0, 600.0)) as group:

        def rows_per_second(rows: int) -> float:
            tell(f"pair: {rows} rows")
            return rows / group.try_rows(rows).seconds

        def ratio(chosen: int, best: int, repeat: int) -> float:
            order = (chosen, best) if repeat % 2 == 0 else (best, chosen)
            speed = {rows: rows_per_second(rows) for rows in order}
            return speed[chosen] / speed[best]

        return [
            Pair(chosen, best, tuple(ratio(chosen, best, n) for n in range(repeats)) if chosen != best else (1.0,))
            for chosen, best in pairs
        ]
