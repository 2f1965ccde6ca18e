"""The report of the committed records: one page that loads nothing, and a picture for each chart."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from gemfleet.benchmarks.__main__ import main
from gemfleet.benchmarks.report.chart import Chart, Section, Series, TableOf
from gemfleet.benchmarks.report.page import figure, html_page
from gemfleet.benchmarks.report.pictures import draw
from gemfleet.benchmarks.report.sections import sections
from gemfleet.benchmarks.shared.record import read_records
from support.places import RESULTS

CHARTS = re.compile(r'id="charts">(.*?)</script>', re.DOTALL)


def charts_of(page: str) -> Any:
    found = CHARTS.search(page)
    assert found is not None
    return json.loads(found[1])


def test_the_committed_records_make_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the PNG files need matplotlib (the extra `bench`)")
    assert main(["report", str(RESULTS), "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    charts = [chart["id"] for chart in charts_of(page)]
    assert {"peers-speed", "peers-loss", "plan-memory", "batch-finder"} <= set(charts)
    assert [f"{name}.png" for name in charts] == found["pictures"]
    assert all(f'id="{name}"' in page and f"({name}.png)" in text for name in charts)
    assert "| gemfleet | 350.4 |" in text
    assert "| gemma-3-270m, rows of 128 | 2.08 | 4 | 97.9% |" in text
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in found["pictures"])


def test_every_suite_has_a_section_and_the_page_loads_nothing() -> None:
    records = read_records(RESULTS)
    found = sections(records)
    assert len(found) == len({record.suite for record in records})
    before, _, after = html_page("title", found).partition('id="plotly"')
    assert not re.search(r"""(src|href)\s*=""", before)
    assert re.match(r">[A-Za-z0-9+/=]{100000,}</script>", after)


def test_text_of_records_cannot_become_markup() -> None:
    chart = Chart("c", "</script><b>", "bar", "", "", [Series("</script>", ["x"], [1.0])])
    page = html_page("<i>", [Section("<b>", "&", [TableOf(("<td>",), [["</td>"]])], [chart], ["<u>"])])
    assert page.count("</script>") == 3
    assert charts_of(page)[0]["data"][0]["name"] == "</script>"
    assert not re.search(r"<(i|b|u)>", page.partition('id="charts"')[0])


def test_a_chart_keeps_its_values_and_error_bars() -> None:
    chart = Chart("c", "t", "bar", "x", "y", [Series("s", ["a", "b"], [2.0, 3.0], [1.5, 2.0], [4.0, 3.5])])
    trace = figure(chart)["data"][0]
    assert (trace["y"], trace["error_y"]["array"]) == ([2.0, 3.0], [2.0, 0.5])
    assert trace["error_y"]["arrayminus"] == [0.5, 1.0]


@pytest.mark.parametrize("kind", ["bar", "stack", "line"])
def test_every_kind_of_chart_is_drawn(kind: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (the extra `bench`)")
    x: Any = [1.0, 2.0] if kind == "line" else ["one case", "another"]
    chart = Chart("c", "t", kind, "x", "y", [Series("s", x, [2.0, 3.0]), Series("ideal", x, [1.0, 2.0], ideal=True)])
    assert draw(chart, tmp_path).stat().st_size > 3000
