"""Three kinds of plot as SVG text, coloured by the page's own variables, with a title that screen readers say."""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 34
BINS = 24
Point = tuple[float, float, float]


def lines(label: str, ticks: Sequence[str], series: Mapping[str, Sequence[Point]]) -> str:
    """(value, low, high) at each tick, a line with bars for every series; not-a-number leaves a gap."""
    every = np.array([point for points in series.values() for point in points], float)
    scale = _Scale(every)
    parts = [scale.axis()]
    for number, points in enumerate(series.values()):
        shift = 5 * (number - (len(series) - 1) / 2)
        at = [(scale.x((i + 0.5) / len(ticks)) + shift, *map(scale.y, p)) for i, p in enumerate(points) if p[0] == p[0]]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in at)
        parts.append(f'<polyline class="s{number}" points="{path}"/>')
        parts += [f'<line class="s{number}" x1="{x:.1f}" x2="{x:.1f}" y1="{a:.1f}" y2="{b:.1f}"/>' for x, _, a, b in at]
        parts += [f'<circle class="s{number}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y, _, _ in at]
    parts += [
        _text(scale.x((i + 0.5) / len(ticks)), HEIGHT - BOTTOM + 16, tick, "middle") for i, tick in enumerate(ticks)
    ]
    return _svg(label, parts)


def histogram(label: str, series: Mapping[str, Sequence[float]]) -> str:
    """How often values come, an outline for every series."""
    every = np.concatenate([np.asarray(values, float) for values in series.values()])
    every = every[np.isfinite(every)]
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = [np.histogram([v for v in values if np.isfinite(v)], edges)[0] for values in series.values()]
    scale = _Scale(np.array([0.0, max(1, max(map(np.max, counts)))]), zero=True)
    parts = [scale.axis()]
    for number, count in enumerate(counts):
        xs = [scale.x(i / BINS) for i in range(BINS + 1) for _ in range(2)]
        ys = [scale.y(0), *(scale.y(c) for c in count for _ in range(2)), scale.y(0)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        parts.append(f'<polygon class="s{number} area" points="{path}"/>')
    for fraction, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        value = edges[0] + fraction * (edges[-1] - edges[0])
        parts.append(_text(scale.x(fraction), HEIGHT - BOTTOM + 16, f"{value:.4g}", anchor))
    return _svg(label, parts)


def bars(label: str, values: Mapping[str, float]) -> str:
    """Shares from 0 to 1, a horizontal bar each, with a line at one half."""
    step, left = 24, 130
    height = step * len(values) + 24
    across = WIDTH - left - 44
    parts = []
    for i, (name, value) in enumerate(values.items()):
        y = 4 + i * step
        parts.append(_text(left - 8, y + 13, name, "end"))
        parts.append(f'<rect class="s0 area" x="{left}" y="{y}" width="{across * value:.1f}" height="{step - 8}"/>')
        parts.append(_text(WIDTH - 4, y + 13, f"{value:.0%}", "end"))
    middle = left + across / 2
    parts.append(f'<line class="half" x1="{middle}" x2="{middle}" y1="0" y2="{height - 20}"/>')
    parts.append(_text(middle, height - 6, "50%", "middle"))
    return _svg(label, parts, height)


class _Scale:
    """Where numbers lie on the canvas; the vertical axis is fitted to them, from zero on where it must be."""

    def __init__(self, values: np.ndarray, zero: bool = False):
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        margin = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
        self.low, self.high = (0.0 if zero else low - margin), high + margin

    def x(self, fraction: float) -> float:
        return LEFT + fraction * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def axis(self) -> str:
        """Lines at round numbers."""
        rough = (self.high - self.low) / 4
        power = 10 ** math.floor(math.log10(rough))
        step = power * next(nice for nice in (1, 2, 5, 10) if power * nice >= rough * 0.999)
        marks = []
        for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1):
            y = self.y(k * step)
            marks.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            marks.append(_text(LEFT - 6, y + 4, f"{k * step:.6g}", "end"))
        return "".join(marks)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(label: str, parts: Sequence[str], height: float = HEIGHT) -> str:
    head = (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {height:g}"><title>{escape(label)}</title>'
    )
    return head + "".join(parts) + "</svg>"
