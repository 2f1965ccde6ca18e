"""The report as one HTML file that needs no network: plotly's own script is packed into it, compressed."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from html import escape
from typing import Any

from .chart import Chart, Section, Series, TableOf

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #1c2330; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d5dae2; padding-bottom: .2rem; }
p.taken, p.note { color: #55607a; font-size: 13px; margin: .3rem 0; }
div.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; margin: .8rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e3e7ee; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } .chart { height: 440px; margin: 1rem 0; }
"""
SCRIPT = """
(async () => {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), c => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  for (const chart of JSON.parse(document.getElementById("charts").textContent))
    Plotly.newPlot(chart.id, chart.data, chart.layout, { responsive: true, displaylogo: false });
})();
"""


def html_page(title: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    charts = [figure(chart) for section in sections for chart in section.charts]
    # "</" would end the script element that the data stands in.
    data = json.dumps(charts, allow_nan=False).replace("</", "<\\/")
    parts = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>',
        f"<h1>{escape(title)}</h1>",
        *(_section(section) for section in sections),
        f'<script type="application/json" id="charts">{data}</script>',
        f'<script type="text/plain" id="plotly">{_packed_plotly()}</script>',
        f"<script>{SCRIPT}</script></body></html>\n",
    )
    return "\n".join(parts)


def figure(chart: Chart) -> dict[str, Any]:
    """A chart as plotly's data and layout."""
    data = [_trace(chart, series, colour) for series, colour in zip(chart.series, chart.colours(), strict=True)]
    kind = "linear" if chart.kind == "line" else "category"
    layout: dict[str, Any] = {
        "title": {"text": chart.title},
        "barmode": "stack" if chart.kind == "stack" else "group",
        "xaxis": {"title": {"text": chart.x_title}, "automargin": True, "type": kind},
        "yaxis": {"title": {"text": chart.y_title}, "rangemode": "tozero", "automargin": True},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        "showlegend": len(chart.series) > 1,
        "margin": {"t": 100},
    }
    return {"id": chart.name, "data": data, "layout": layout}


def _trace(chart: Chart, series: Series, colour: str) -> dict[str, Any]:
    trace: dict[str, Any] = {"name": series.name, "x": list(series.x), "y": list(series.y)}
    if chart.kind == "line":
        line = {"color": colour, **({"dash": "dash"} if series.ideal else {})}
        return trace | {"type": "scatter", "mode": "lines+markers", "line": line}
    trace |= {"type": "bar", "marker": {"color": colour}}
    if series.low is not None and series.high is not None:
        up = [high - y for y, high in zip(series.y, series.high, strict=True)]
        down = [y - low for y, low in zip(series.y, series.low, strict=True)]
        trace["error_y"] = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
    return trace


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>", f'<p class="taken">{escape(section.taken)}</p>']
    parts += [_table(table) for table in section.tables]
    parts += [f'<p class="note">{escape(note)}</p>' for note in section.notes]
    for chart in section.charts:
        parts.append(f'<div class="chart" id="{escape(chart.name)}"></div>')
        parts += [f'<p class="note">{escape(chart.note)}</p>'] if chart.note else []
    return "\n".join(parts)


def _table(table: TableOf) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _packed_plotly() -> str:
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
