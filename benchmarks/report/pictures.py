"""Charts as PNG files, drawn once for the page and for all other places. Needs matplotlib, and no display."""

from __future__ import annotations

import io
from typing import Any

from gemfleet.benchmarks.shared.section import Chart

INCHES, DOTS_PER_INCH = (9.0, 5.0), 110
LONG_LABEL = 12  # characters above which labels are turned
# Okabe and Ito's colours, which people who see colours differently can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800", "#7F7F7F")
IDEAL_COLOUR = "#444444"


def png(chart: Chart) -> bytes:
    file = io.BytesIO()
    figure(chart).savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def figure(chart: Chart) -> Any:
    """matplotlib's figure of a chart."""
    from matplotlib.figure import Figure

    drawn: Any = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    axes = drawn.subplots()
    axes.set_prop_cycle(color=COLOURS)
    (_lines if chart.kind == "line" else _bars)(axes, chart)
    axes.set(title=chart.title, xlabel=chart.x_title, ylabel=chart.y_title)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(chart.series) > 1:
        drawn.legend(loc="outside lower center", ncols=min(3, len(chart.series)), fontsize=8, frameon=False)
    return drawn


def _lines(axes: Any, chart: Chart) -> None:
    for series in chart.series:
        style: dict[str, Any] = {"linestyle": "--", "color": IDEAL_COLOUR} if series.ideal else {"marker": "o"}
        axes.plot(series.x, series.y, label=series.name, linewidth=1.6, markersize=4, **style)
    places = sorted({float(x) for series in chart.series for x in series.x})
    if all(place.is_integer() for place in places):
        axes.set_xticks(places, [f"{place:.0f}" for place in places])


def _bars(axes: Any, chart: Chart) -> None:
    names = list(dict.fromkeys(str(x) for series in chart.series for x in series.x))
    stacked, below = chart.kind == "stack", dict.fromkeys(names, 0.0)
    width = 0.6 if stacked else 0.8 / max(1, len(chart.series))
    for number, series in enumerate(chart.series):
        beside = 0.0 if stacked else (number - (len(chart.series) - 1) / 2) * width
        places = [names.index(str(x)) + beside for x in series.x]
        bottom = [below[str(x)] for x in series.x] if stacked else None
        errors = None
        if series.low is not None and series.high is not None:
            ends = zip(series.y, series.low, series.high, strict=True)
            errors = list(zip(*((y - low, high - y) for y, low, high in ends), strict=True))
        axes.bar(places, series.y, width, bottom=bottom, label=series.name, yerr=errors, capsize=3)
        for x, y in zip(series.x, series.y, strict=True):
            below[str(x)] += y
    turned = len(names) > 3 and max(map(len, names)) > LONG_LABEL
    axes.set_xticks(range(len(names)), names, fontsize=8, **({"rotation": 25, "ha": "right"} if turned else {}))
