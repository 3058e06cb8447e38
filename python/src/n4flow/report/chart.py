"""Line charts as SVG in the page's own colours: what the report needs of a plotting library starts in no time here."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from n4flow.report.text import plain

INK, FAINT, BEFORE, AFTER, FLAG = (f"var(--{name})" for name in ("ink", "faint", "before", "after", "flag"))
WIDE, NARROW, HEIGHT = 792, 389, 172  # of a chart, in points
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 30, 32  # around the axes
FONT, LETTER = 8.5, 4.6  # points, and how wide a letter is on average
DASHES = "4 2"
MOST_POINTS = 2000  # of a series that a reader can point at


class Chart:
    """A chart with one pair of axes; x goes from `x` to `x`, y shows everything that is drawn.

    Parameters
    ----------
    width : int
        In points.
    title, x_label, y_label : str
    x : (float, float)
        First and last value of the horizontal axis.
    x_ticks : sequence of (float, str), optional
        Where the horizontal axis is marked, and by what; at round numbers without it.
    log : bool
        Whether the vertical axis is logarithmic.
    planes : bool
        Whether the horizontal axis has the planes of the volume.
    names : sequence of str, optional
        What stands at 0, 1, ... of the horizontal axis.
    """

    def __init__(
        self,
        width: int,
        title: str,
        x_label: str,
        y_label: str,
        x: tuple[float, float],
        x_ticks: Sequence[tuple[float, str]] | None = None,
        *,
        log: bool = False,
        planes: bool = False,
        names: Sequence[str] | None = None,
    ) -> None:
        self.width, self.title, self.labels = width, title, (x_label, y_label)
        self.x, self.x_ticks, self.log = x, ticks(*x, width // 65) if x_ticks is None else x_ticks, log
        self.behind: list[tuple[float, float, str]] = []  # bands over the whole height: from, to, attributes
        self.levels: list[tuple[float, float, str]] = []  # the same over the whole width
        self.lines: list[tuple[np.ndarray, np.ndarray, str]] = []
        self.dots: list[tuple[np.ndarray, np.ndarray, str, float, bool]] = []
        self.legend: list[tuple[str, str]] = []
        self.planes, self.names = planes, names
        self.told: list[tuple[str, np.ndarray, np.ndarray]] = []  # series that a reader can point at
        self.least: list[float] = []  # what the vertical axis shows at least

    def band(self, start: float, stop: float, colour: str, opacity: float) -> None:
        """Shade a part of the horizontal axis."""
        self.behind.append((start, stop, f'fill="{colour}" opacity="{opacity:g}"'))

    def level_band(self, low: float, high: float, colour: str, opacity: float, label: str) -> None:
        """Shade a part of the vertical axis."""
        self.levels.append((low, high, f'fill="{colour}" opacity="{opacity:g}"'))
        self.legend.append((label, f'stroke="{colour}" stroke-width="6" opacity="{opacity:g}"'))

    def line(
        self, x: Any, y: Any, colour: str, width: float, label: str | None = None, dashes: str = "", opacity: float = 1
    ) -> None:
        """Draw a line through points, with gaps where y is not finite."""
        look = f'stroke="{colour}" stroke-width="{width:g}"' + (f' stroke-dasharray="{dashes}"' if dashes else "")
        look += f' opacity="{opacity:g}"' if opacity < 1 else ""
        self.lines.append((np.asarray(x, float), np.asarray(y, float), look))
        if label is not None:
            self.legend.append((label, look))
            self.tell(label, x, y)

    def scatter(self, x: Any, y: Any, colour: str, size: float, label: str | None = None, square: bool = False) -> None:
        """Draw a dot, or a square, at each point with a finite y."""
        self.dots.append((np.asarray(x, float), np.asarray(y, float), colour, size, square))
        if label is not None:
            self.legend.append((label, f'stroke="{colour}" stroke-width="{size:g}" stroke-dasharray="{size:g} 99"'))
            self.tell(label, x, y)

    def tell(self, label: str, x: Any, y: Any) -> None:
        """Let a reader point at a series: the page's script shows the values, see `templates/report.js`."""
        every = max(1, -(-len(x) // MOST_POINTS))
        self.told.append((label, np.asarray(x, float)[::every], np.asarray(y, float)[::every]))

    def svg(self, bottom: float | None = None) -> str:
        """Return the chart; the vertical axis begins at `bottom` if that is given."""
        low, high = self._range(bottom)
        inner_x, inner_y = self.width - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        scale = math.log10 if self.log else float
        first, last = scale(low), scale(high)

        def across(values: Any) -> Any:
            return LEFT + (np.asarray(values, float) - self.x[0]) / (self.x[1] - self.x[0]) * inner_x

        def up(values: Any) -> Any:
            shown = np.clip(values, low, high)
            return TOP + (last - (np.log10(shown) if self.log else shown)) / (last - first) * inner_y

        base = TOP + inner_y
        parts = [_rectangle(across(a), across(b), TOP, base, look) for a, b, look in self.behind]
        parts += [_rectangle(LEFT, LEFT + inner_x, up(b), up(a), look) for a, b, look in self.levels]
        parts += [
            f'<path d="{_path(*thinned(across(x), up(y), inner_x))}" fill="none" {look}/>' for x, y, look in self.lines
        ]
        for x, y, colour, size, square in self.dots:
            shown, half = np.isfinite(y), size / 2
            places = zip(across(x[shown]), up(y[shown]), strict=True)
            marks = (
                _rectangle(a - half, a + half, b - half, b + half, "")
                if square
                else f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{half:g}"/>'
                for a, b in places
            )
            parts.append(f'<g fill="{colour}">{"".join(marks)}</g>')
        axes = f"M{LEFT},{TOP}V{base}H{LEFT + inner_x}"
        texts = []
        for value, text in self.x_ticks:
            axes += f"M{across(value):.1f},{base}v3"
            texts.append(_text(text, float(across(value)), base + 12, "middle"))
        for value, text in decades(low, high) if self.log else ticks(low, high, 5):
            axes += f"M{LEFT},{up(value):.1f}h-3"
            texts.append(_text(text, LEFT - 5, float(up(value)) + 3, "end"))
        texts.append(_text(self.labels[0], LEFT + inner_x / 2, HEIGHT - 5, "middle"))
        texts.append(_text(self.labels[1], 9, TOP + inner_y / 2, "middle", "rotate(-90 9 {y:g})"))
        texts.append(_text(self.title, LEFT, 10, "start", size=9.5))
        parts += [f'<path d="{axes}" fill="none" stroke="{FAINT}" stroke-width=".8"/>', *texts, *self._legend()]
        head = f'<svg viewBox="0 0 {self.width} {HEIGHT}" role="img" aria-label="{escape(self.title)}"'
        points = escape(self._points(base)) if self.told else ""
        head += f' data-points="{points}"' if points else ""
        return f'{head} font-family="sans-serif" font-size="{FONT}">{"".join(parts)}</svg>'

    def _points(self, base: float) -> str:
        """Return as JSON what can be pointed at, and where the axes lie."""
        lines = [[label, [plain(v, 8) for v in x], [plain(v, 4) for v in y]] for label, x, y in self.told]
        found = {
            "x": self.x,
            "left": LEFT,
            "right": self.width - RIGHT,
            "top": TOP,
            "bottom": base,
            "names": self.names,
            "series": {"plane": self.planes, "label": self.labels[0], "lines": lines},
        }
        return json.dumps(found, ensure_ascii=False, separators=(",", ":"))

    def _range(self, bottom: float | None) -> tuple[float, float]:
        """Return the ends of the vertical axis: a margin around what is drawn."""
        drawn = [y for _x, y, *_look in (*self.lines, *self.dots)] + [np.array(self.least)]
        drawn += [np.array(part[:2]) for part in self.levels]
        values = np.concatenate(drawn)
        values = values[np.isfinite(values) & ((values > 0) | (not self.log))]
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
        if self.log:
            return (low / 1.2 if bottom is None else bottom), max(high, low * 2) * 1.2
        low = low if bottom is None else bottom
        high = max(low, high)  # All may lie below the bottom.
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
        return (low - margin if bottom is None else low), high + margin

    def _legend(self) -> list[str]:
        """Return the lines of the legend, from the right, above the axes."""
        parts, x = [], float(self.width - RIGHT)
        for text, look in reversed(self.legend):
            x -= len(text) * LETTER
            parts += [_text(text, x, TOP - 7, "start"), f'<path d="M{x - 16:g},{TOP - 10}h12" {look}/>']
            x -= 26
        return parts


def ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Return round numbers between two, a few of them, and how they are written.

    >>> ticks(0.94, 1.06, 5)
    [(0.95, '0.95'), (1.0, '1.00'), (1.05, '1.05')]
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * most >= (high - low) * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(round(n * step, digits), f"{n * step:.{digits}f}") for n in range(first, last + 1)]


def decades(low: float, high: float) -> list[tuple[float, str]]:
    """Return the powers of ten between two numbers, and how they are written.

    >>> decades(0.05, 20)
    [(0.1, '0.1'), (1.0, '1'), (10.0, '10')]
    """
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    return [(10.0**power, f"{10.0**power:g}") for power in powers]


def thinned(x: np.ndarray, y: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of a long line that are seen: of each column of half a point the lowest and the highest."""
    if len(x) <= 4 * columns:
        return x, y
    column = ((x - x.min()) * 2).astype(np.int64)
    ends = np.flatnonzero(np.diff(column, prepend=-1, append=column[-1] + 1))
    chosen: set[int] = set()
    for start, stop in itertools.pairwise(map(int, ends)):
        part = y[start:stop]
        gap = np.flatnonzero(~np.isfinite(part))
        chosen |= {start + int(gap[0])} if gap.size else set()
        if gap.size < part.size:
            chosen |= {start + int(np.nanargmin(part)), start + int(np.nanargmax(part))}
    kept = sorted(chosen)
    return x[kept], y[kept]


def _path(x: Iterable[float], y: Iterable[float]) -> str:
    parts, letter = [], "M"
    for a, b in zip(x, y, strict=True):
        if math.isfinite(b):
            parts.append(f"{letter}{a:.1f},{b:.1f}")
        letter = "L" if math.isfinite(b) else "M"
    return "".join(parts)


def _rectangle(left: float, right: float, top: float, bottom: float, look: str) -> str:
    return f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}" {look}/>'


def _text(text: str, x: float, y: float, anchor: str, turn: str = "", size: float | None = None) -> str:
    look = (f' transform="{turn.format(y=y)}"' if turn else "") + (f' font-size="{size}"' if size else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}"{look}>{escape(text)}</text>'
