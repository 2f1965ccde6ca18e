"""Log files are read from their ends and in pieces, whatever their size."""

from __future__ import annotations

import tempfile
import tracemalloc
from pathlib import Path

import pytest
from gemfleet.cluster.redaction import clean_text
from gemfleet.launcher.runs import log_files
from gemfleet.launcher.runs.log_files import LogReader
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(deadline=None)
@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=40), st.integers(0, 50))
def test_the_last_lines_are_those_that_reading_all_finds(lines: list[bytes], count: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_files, "PIECE_BYTES", 7)
        path = Path(folder) / "rank-0.log"
        path.write_bytes(b"".join(line + b"\n" for line in lines) + b"being written")
        reader = LogReader(Path(folder))
        told = [clean_text(line.decode("utf-8", "replace").rstrip("\r")) for line in lines]
        assert list(reader.tail(count)) == [("rank-0", line) for line in told[len(told) - min(count, len(told)) :]]
        with path.open("ab") as file:
            file.write(b", now whole\nnext\n")
        assert list(reader.new_lines()) == [("rank-0", "being written, now whole"), ("rank-0", "next")]
        assert list(reader.new_lines()) == []


def test_a_huge_log_costs_a_few_pieces(tmp_path: Path) -> None:
    with (tmp_path / "rank-0.log").open("wb") as file:
        file.truncate(8 << 30)
        file.seek(0, 2)
        file.write(b"\nlast\n")
    reader = LogReader(tmp_path)
    tracemalloc.start()
    assert list(reader.tail(1)) == [("rank-0", "last")]
    assert len(list(reader.tail(1000))) <= 2  # a line without end is told from where reading begins
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_a_line_without_end_is_told_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "LINE_BYTES", 10)
    (tmp_path / "rank-0.log").write_bytes(b"x" * 25 + b"\nnext\n")
    assert [line for _, line in LogReader(tmp_path).new_lines()] == ["x" * 10, "x" * 10, "x" * 5, "next"]
