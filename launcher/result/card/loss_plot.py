"""Draws the losses of a run as a small SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 320, 56, 16, 24, 40
TRAIN_COLOUR, EVAL_COLOUR = "#3b6fb6", "#c4572f"
Point = tuple[float, float]


def loss_plot(history: Sequence[Mapping[str, Any]], published: int | None = None) -> str:
    """An SVG with the training loss as a line and the evaluation loss as points.

    history: `log_history`; published: the step to mark, None for no mark
    """
    train, evaluation = _finite(history, "loss"), _finite(history, "eval_loss")
    points = train + evaluation
    if not points:
        return _svg([_text(WIDTH / 2, HEIGHT / 2, "no losses were recorded", "middle")])
    scale = _Scale(points)
    parts = [_axes(scale), *([] if published is None else [_mark(scale, published)])]
    if train:
        path = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in train)
        parts.append(f'<polyline fill="none" stroke="{TRAIN_COLOUR}" stroke-width="1.5" points="{path}"/>')
    parts += [
        f'<circle cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="4" fill="{EVAL_COLOUR}"/>' for x, y in evaluation
    ]
    parts += [_text(WIDTH - RIGHT, 16, "training loss", "end", TRAIN_COLOUR)]
    parts += [_text(WIDTH - RIGHT - 100, 16, "evaluation loss", "end", EVAL_COLOUR)] if evaluation else []
    return _svg(parts)


def _finite(history: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """The steps and losses that can be drawn."""
    found = [(float(entry["step"]), float(entry[key])) for entry in history if key in entry]
    return [point for point in found if math.isfinite(point[1])]


def _mark(scale: _Scale, step: int) -> str:
    x, y = f"{scale.x(step):.1f}", HEIGHT - BOTTOM - 6
    line = f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#444444" stroke-dasharray="4 3"/>'
    left = scale.x(step) < WIDTH / 2
    return line + _text(scale.x(step) + (5 if left else -5), y, f"published: step {step}", "start" if left else "end")


class _Scale:
    """Converts steps and losses to pixels."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.first, self.last = min(x for x, _ in points), max(x for x, _ in points)
        low, high = min(y for _, y in points), max(y for _, y in points)
        room = (high - low) * 0.05 or max(abs(high) * 0.05, 1e-3)
        self.low, self.high = low - room, high + room

    def x(self, step: float) -> float:
        return LEFT + (step - self.first) / ((self.last - self.first) or 1.0) * (WIDTH - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        return TOP + (self.high - loss) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def _axes(scale: _Scale) -> str:
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        loss = scale.low + share * (scale.high - scale.low)
        y = scale.y(loss)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{loss:.3g}", "end"))
    for step in sorted({round(scale.first), round((scale.first + scale.last) / 2), round(scale.last)}):
        parts.append(_text(scale.x(step), HEIGHT - BOTTOM + 18, str(step), "middle"))
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 6, "optimizer step", "middle"))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#444444") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _svg(parts: Sequence[str]) -> str:
    view, font = f'viewBox="0 0 {WIDTH} {HEIGHT}"', 'font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {view} {font}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#ffffff"/>', *parts, "</svg>"]) + "\n"
