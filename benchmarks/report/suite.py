"""Make a report of a folder of records: `report.html`, which needs nothing else, `report.md`, and the charts as PNG."""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

from ..shared.record import read_records
from .page import html_page
from .pictures import draw
from .sections import sections
from .text import markdown

TITLE = "gemfleet benchmarks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gemfleet bench report`."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="records, in this folder and below it")
    parser.add_argument("--out", type=Path, help="folder of the report (default: DIR/report)")
    parser.add_argument("--title", default=TITLE, help=f"default: {TITLE}")


def run(arguments: argparse.Namespace) -> int:
    """Write the report; the last line printed is JSON. Without matplotlib pictures are left out, which is said."""
    found = sections(read_records(arguments.folder))
    out: Path = arguments.out or arguments.folder / "report"
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(html_page(arguments.title, found), encoding="utf-8")
    has_pictures = find_spec("matplotlib") is not None
    pictures = [draw(chart, out).name for section in found for chart in section.charts] if has_pictures else []
    if not has_pictures:
        print("no PNG files: matplotlib is not installed; run pip install 'gemfleet[bench]'")
    (out / "report.md").write_text(markdown(arguments.title, found, has_pictures), encoding="utf-8")
    print(json.dumps({"report": str(out / "report.html"), "sections": len(found), "pictures": pictures}))
    return 0
