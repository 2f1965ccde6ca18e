"""Make a report of a folder of records: `report.html`, which needs nothing else, `report.md`, and the charts as PNG.

Without matplotlib (`pip install 'gemfleet[bench]'`) the report has tables and no charts.

  gemfleet bench report bench-results
  gemfleet bench report benchmarks/results --out report
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path

from gemfleet.benchmarks.shared.record import Record, read_records
from gemfleet.benchmarks.shared.section import Section, Table, markdown, plain_section
from gemfleet.benchmarks.suites import SUITES, load

from .pictures import png

TITLE = "gemfleet benchmarks"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #1c2330; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d5dae2; padding-bottom: .2rem; }
p.note { color: #55607a; font-size: 13px; margin: .3rem 0; } img { max-width: 100%; margin: 1rem 0; }
div.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; margin: .8rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e3e7ee; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
"""


class Report:
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", type=Path, metavar="DIR", help="records, in this folder and below it")
        parser.add_argument("--out", type=Path, help="folder of the report (default: DIR/report)")

    def run(self, options: argparse.Namespace) -> int:
        """Write the report; the last line printed is JSON."""
        found = sections(read_records(options.folder))
        out: Path = options.out or options.folder / "report"
        out.mkdir(parents=True, exist_ok=True)
        pictures = {}
        if find_spec("matplotlib") is None:
            print("no charts: matplotlib is not installed; run pip install 'gemfleet[bench]'")
        else:
            pictures = {chart.name: png(chart) for section in found for chart in section.charts}
        for name, content in pictures.items():
            (out / f"{name}.png").write_bytes(content)
        (out / "report.html").write_text(html_page(TITLE, found, pictures), encoding="utf-8")
        text = [f"# {TITLE}", "", *(markdown(section, bool(pictures)) for section in found)]
        (out / "report.md").write_text("\n".join(text), encoding="utf-8")
        names = [f"{name}.png" for name in pictures]
        print(json.dumps({"report": str(out / "report.html"), "sections": len(found), "pictures": names}))
        return 0


def sections(records: Sequence[Record]) -> list[Section]:
    """One for each suite there are records of, in the order of `SUITES`."""
    suites = dict.fromkeys([*SUITES, *(record.suite for record in records)])
    found = {suite: [record for record in records if record.suite == suite] for suite in suites}
    return [
        load(suite).section(mine) if suite in SUITES else plain_section(mine) for suite, mine in found.items() if mine
    ]


def html_page(title: str, sections: Sequence[Section], pictures: Mapping[str, bytes]) -> str:
    """The whole page. pictures: PNG by the chart's name; a chart without one is left out"""
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>',
        f"<h1>{escape(title)}</h1>",
    ]
    for section in sections:
        parts += [f"<h2>{escape(section.title)}</h2>", _note(section.taken)]
        parts += [*map(_table, section.tables), *map(_note, section.notes)]
        for chart in section.charts:
            if chart.name in pictures:
                name, content = escape(chart.name), base64.b64encode(pictures[chart.name]).decode()
                parts.append(f'<img id="{name}" alt="{escape(chart.title)}" src="data:image/png;base64,{content}">')
    return "\n".join([*parts, "</body></html>\n"])


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


SUITE = Report()
