"""Reads the log files of a run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path


class LogReader:
    """Reads `driver.log` and `rank-<n>.log` of a folder, from where it stopped before."""

    def __init__(self, folder: Path, rank: int | None = None) -> None:
        self._folder = folder
        self._pattern = "*.log" if rank is None else f"rank-{rank}.log"
        self._offsets: dict[Path, int] = {}

    def tail(self, count: int) -> Iterator[tuple[str, str]]:
        """The last `count` lines of each file, as (source, line)."""
        for path in sorted(self._folder.glob(self._pattern)):
            lines: deque[str] = deque(maxlen=count)
            lines.extend(self._read(path))
            yield from ((path.stem, line) for line in lines)

    def new_lines(self) -> Iterator[tuple[str, str]]:
        """Whole lines written since the last call; a file that appeared meanwhile from its beginning."""
        for path in sorted(self._folder.glob(self._pattern)):
            yield from ((path.stem, line) for line in self._read(path))

    def _read(self, path: Path) -> list[str]:
        with path.open("rb") as file:
            file.seek(self._offsets.get(path, 0))
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]  # a line that is being written comes next time
        self._offsets[path] = self._offsets.get(path, 0) + len(whole)
        return whole.decode("utf-8", "replace").splitlines()
