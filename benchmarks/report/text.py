"""The report as Markdown, with the pictures beside it."""

from __future__ import annotations

from collections.abc import Sequence

from .chart import Section


def markdown(title: str, sections: Sequence[Section], pictures: bool) -> str:
    """The whole report; `pictures`: whether the charts' files are there to be shown."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", "", section.taken, ""]
        for table in section.tables:
            lines += ["| " + " | ".join(table.columns) + " |", "|---|" + "---:|" * (len(table.columns) - 1)]
            lines += ["| " + " | ".join(row) + " |" for row in table.rows] + [""]
        lines += [line for note in section.notes for line in (note, "")]
        for chart in section.charts if pictures else ():
            lines += [f"![{chart.title}]({chart.name}.png)", "", *([chart.note, ""] if chart.note else [])]
    return "\n".join(lines)
