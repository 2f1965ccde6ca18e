"""The report of the committed records: one page that loads nothing, and a picture for each chart."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from gemfleet.benchmarks.__main__ import main
from gemfleet.benchmarks.report.pictures import figure, png
from gemfleet.benchmarks.report.suite import html_page, sections
from gemfleet.benchmarks.shared.record import read_records
from gemfleet.benchmarks.shared.section import Chart, Section, Series, Table
from support.places import RESULTS

CHARTS = re.compile(r'<img id="([^"]+)" alt="[^"]*" src="data:image/png;base64,([^"]+)">')


def test_the_committed_records_make_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="charts need matplotlib (the extra `bench`)")
    assert main(["report", str(RESULTS), "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    charts = dict(CHARTS.findall(page))
    assert {"peers-speed", "peers-loss", "plan-memory", "batch-finder"} <= set(charts)
    assert [f"{name}.png" for name in charts] == found["pictures"]
    assert all(f"({name}.png)" in text for name in charts)
    assert "| gemfleet | 332.8 |" in text
    assert "| gemma-3-270m, rows of 128 | 2.08 | 4 | 97.9% |" in text
    for name, content in charts.items():
        assert (tmp_path / f"{name}.png").read_bytes() == base64.b64decode(content)
        assert base64.b64decode(content).startswith(b"\x89PNG")


def test_every_suite_has_a_section_and_the_page_loads_nothing() -> None:
    records = read_records(RESULTS)
    found = sections(records)
    assert len(found) == len({record.suite for record in records})
    pictures = {chart.name: b"picture" for section in found for chart in section.charts}
    page = html_page("title", found, pictures)
    assert set(re.findall(r"""(?:src|href)\s*=\s*"([^:]*:)""", page)) == {"data:"}
    assert "<script" not in page
    assert page.count("<img") == len(pictures)


def test_text_of_records_cannot_become_markup() -> None:
    chart = Chart('c"><b>', "</h2><b>", "bar", "", "", [Series("<b>", ["x"], [1.0])])
    section = Section("<b>", "&", [Table(("<td>",), [["</td>"]])], [chart], ["<u>"])
    page = html_page("<i>", [section], {chart.name: b""})
    assert not re.search(r"<(i|b|u)>", page)
    assert page.count("</td>") == page.count("<td>") == 1


def test_a_chart_keeps_its_values_and_error_bars() -> None:
    pytest.importorskip("matplotlib", reason="charts need matplotlib (the extra `bench`)")
    chart = Chart("c", "t", "bar", "x", "y", [Series("s", ["a", "b"], [2.0, 3.0], [1.5, 2.0], [4.0, 3.5])])
    (axes,) = figure(chart).axes
    assert [bar.get_height() for bar in axes.patches] == [2.0, 3.0]
    (whiskers,) = axes.collections
    assert [[float(y) for _, y in line] for line in whiskers.get_segments()] == [[1.5, 4.0], [2.0, 3.5]]


@pytest.mark.parametrize("kind", ["bar", "stack", "line"])
def test_every_kind_of_chart_is_drawn(kind: Any) -> None:
    pytest.importorskip("matplotlib", reason="charts need matplotlib (the extra `bench`)")
    x: Any = [1.0, 2.0] if kind == "line" else ["one case", "another"]
    chart = Chart("c", "t", kind, "x", "y", [Series("s", x, [2.0, 3.0]), Series("ideal", x, [1.0, 2.0], ideal=True)])
    assert len(png(chart)) > 3000
