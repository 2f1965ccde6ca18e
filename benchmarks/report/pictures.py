"""Charts as PNG files, for places that show no HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .chart import Chart, Series

INCHES = (9.0, 5.0)
DOTS_PER_INCH = 110
LONG_LABEL = 12  # characters above which labels are turned


def draw(chart: Chart, folder: Path) -> Path:
    """`<folder>/<chart's name>.png`; needs matplotlib, without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    (_lines if chart.kind == "line" else _bars)(axes, chart)
    axes.set(title=chart.title, xlabel=chart.x_title, ylabel=chart.y_title)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(chart.series) > 1:
        figure.legend(loc="outside lower center", ncols=min(3, len(chart.series)), fontsize=8, frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{chart.name}.png"
    figure.savefig(path, metadata={"Software": None})
    return path


def _lines(axes: Any, chart: Chart) -> None:
    for series, colour in zip(chart.series, chart.colours(), strict=True):
        style = "--" if series.ideal else "o-"
        axes.plot(series.x, series.y, style, color=colour, label=series.name, linewidth=1.6, markersize=4)
    places = sorted({float(x) for series in chart.series for x in series.x})
    if all(place.is_integer() for place in places):
        axes.set_xticks(places, [f"{place:.0f}" for place in places])


def _bars(axes: Any, chart: Chart) -> None:
    names = list(dict.fromkeys(str(x) for series in chart.series for x in series.x))
    stacked = chart.kind == "stack"
    below = dict.fromkeys(names, 0.0)
    width = 0.6 if stacked else 0.8 / max(1, len(chart.series))
    for number, (series, colour) in enumerate(zip(chart.series, chart.colours(), strict=True)):
        beside = 0.0 if stacked else (number - (len(chart.series) - 1) / 2) * width
        places = [names.index(str(x)) + beside for x in series.x]
        bottom = [below[str(x)] for x in series.x] if stacked else None
        options = {"color": colour, "label": series.name, "yerr": _errors(series), "capsize": 3}
        axes.bar(places, series.y, width, bottom=bottom, **options)
        for x, y in zip(series.x, series.y, strict=True):
            below[str(x)] += y
    turned = len(names) > 3 and max(map(len, names)) > LONG_LABEL
    slant = {"rotation": 25, "ha": "right"} if turned else {}
    axes.set_xticks(range(len(names)), names, fontsize=8, **slant)


def _errors(series: Series) -> list[list[float]] | None:
    if series.low is None or series.high is None:
        return None
    down = [y - low for y, low in zip(series.y, series.low, strict=True)]
    up = [high - y for y, high in zip(series.y, series.high, strict=True)]
    return [down, up]
