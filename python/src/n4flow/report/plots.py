"""The plots of a report: small line plots along Z and over sections, as SVG that takes its colours from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from n4flow.sections import SectionTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Placeholders, which the page's own colours replace; these differ between light and dark mode.
INK, FAINT, BEFORE, AFTER, FLAG = "#010203", "#010204", "#010205", "#010206", "#010207"
VARIABLES = {INK: "--ink", FAINT: "--faint", BEFORE: "--before", AFTER: "--after", FLAG: "--flag"}
WIDE, NARROW, HEIGHT = 11.0, 5.4, 2.3  # Sizes of plots are in inches.
SMALLEST_STEP = 0.1  # Steps smaller than this, in percent, are drawn at this height.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "n4flow",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.parse_math": False,
    "axes.formatter.useoffset": False,
}


Painter = Callable[..., None]  # Draws into the axes that it is given first.


def plot(name: str, width: float, title: str, ylabel: str) -> Callable[[Painter], Callable[..., str]]:
    """Make of a function that draws into axes one that returns inline SVG; `name` makes ids unique on the page."""

    def of(paint: Painter) -> Callable[..., str]:
        @wraps(paint)
        def draw(*arguments: Any) -> str:
            import matplotlib as mpl
            from matplotlib.backends.backend_svg import FigureCanvasSVG
            from matplotlib.figure import Figure

            with mpl.rc_context(STYLE):
                figure = Figure(figsize=(width, HEIGHT), layout="constrained")
                FigureCanvasSVG(figure)
                figure.patch.set_alpha(0)
                axes = figure.add_subplot()
                axes.patch.set_alpha(0)
                axes.set_title(title)
                axes.set_ylabel(ylabel)
                paint(axes, *arguments)
                stream = io.StringIO()
                figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
            return _inline(stream.getvalue(), name)

        return draw

    return of


def _inline(svg: str, name: str) -> str:
    """Return SVG for use inside a page: no prologue, no namespaces, unique ids, and the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r' height="[^"]*"', "", svg, count=1)  # The first one is that of the whole plot.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.strip()


def _along_z(axes: Axes, sections: SectionTable) -> None:
    """Mark cuts between sections and flagged sections behind a plot along Z."""
    axes.set_xlim(-0.5, sections.n_planes - 0.5)
    axes.set_xlabel("plane")
    if len(sections) < sections.n_planes:
        for section in sections[1:]:
            axes.axvline(section.z_start - 0.5, color=FAINT, linewidth=0.5, alpha=0.6, zorder=0)
    for section in sections:
        if not section.usable:
            axes.axvspan(section.z_start - 0.5, section.z_stop - 0.5, color=FLAG, alpha=0.25, linewidth=0, zorder=0)


def _over_sections(axes: Axes, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Prepare a plot over sections, flagged ones marked; return the place of each."""
    axes.set_xlim(-0.5, len(rows) - 0.5)
    every = max(1, -(-len(rows) // 12))
    axes.set_xticks(range(0, len(rows), every), [rows[i]["id"] for i in range(0, len(rows), every)])
    axes.set_xlabel("section")
    for number, row in enumerate(rows):
        if row["flag"] != "ok":
            axes.axvspan(number - 0.5, number + 0.5, color=FLAG, alpha=0.25, linewidth=0, zorder=0)
    return np.arange(len(rows))


def _legend(axes: Axes, columns: int, **options: Any) -> None:
    axes.legend(loc="upper right", ncols=columns, bbox_to_anchor=(1, 1.16), borderaxespad=0, **options)


def _two_lines(axes: Axes, planes: dict[str, Any], what: str, sections: SectionTable) -> None:
    _along_z(axes, sections)
    before, after = (np.array(planes[f"{what}_{time}"], float) for time in ("before", "after"))
    marker = "o" if np.isfinite(before).sum() <= 60 else None
    # The line of before is wider, so that it stays visible where both are equal.
    for values, colour, label, width in ((before, BEFORE, "before", 2.4), (after, AFTER, "after", 1.2)):
        axes.plot(values, color=colour, linewidth=width, marker=marker, markersize=2.5, label=label)
    _legend(axes, 2)


@plot("means", WIDE, "Mean of tissue in each plane", "intensity")
def plane_means(axes: Axes, planes: dict[str, Any], sections: SectionTable) -> None:
    """Mean of tissue in every plane, before and after."""
    _two_lines(axes, planes, "tissue", sections)
    axes.set_ylim(bottom=0)


@plot("agarose", WIDE, "Agarose level in each plane", "intensity")
def agarose_levels(axes: Axes, planes: dict[str, Any], sections: SectionTable) -> None:
    """Agarose level of every plane, before and after."""
    _two_lines(axes, planes, "agarose", sections)


@plot("gains", NARROW, "Gain of each plane", "after / before")
def gains(
    axes: Axes, planes: dict[str, Any], sections: SectionTable, level: float, smoothing: np.ndarray | None
) -> None:
    """Ratio of each plane's mean signal after to before, and the part of it that is due to smoothing along Z."""
    _along_z(axes, sections)
    before, after = (np.array(planes[f"tissue_{time}"], float) - level for time in ("before", "after"))
    total = np.divide(after, before, out=np.full_like(after, np.nan), where=before > 0)
    axes.axhline(1, color=FAINT, linewidth=0.8)
    axes.plot(total, color=AFTER, linewidth=1.3, label="all steps")
    if smoothing is not None:
        axes.plot(smoothing, color=INK, linewidth=1.0, linestyle=(0, (4, 2)), label="of it, Z smoothing")
    _legend(axes, 2)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.95), max(high, 1.05))


@plot("fields", NARROW, "Bias field in each section: p1 to p99, dot: median", "input / corrected")
def field_ranges(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """First to 99th percentile of the bias field in each section's tissue."""
    low, middle, high = (np.array([row[f"bias_{p}"] for row in rows], float) for p in ("p1", "p50", "p99"))
    width = min(4.0, max(0.8, 200 / len(rows)))
    _ranges(axes, rows, low, middle, high, linewidth=width, alpha=0.6)


@plot("section-gains", NARROW, "Gain of each section, and twice its uncertainty", "input / corrected")
def section_gains(axes: Axes, rows: Sequence[dict[str, Any]], numbers: dict[str, Any]) -> None:
    """Gain of every section that the harmonisation estimated, with twice its uncertainty."""
    gain, sd = np.array(numbers["gain"], float), np.array(numbers["gain_sd"], float)
    _ranges(axes, rows, gain * np.exp(-2 * sd), gain, gain * np.exp(2 * sd), linewidth=1.2, alpha=0.7)


def _ranges(
    axes: Axes, rows: Sequence[dict[str, Any]], low: np.ndarray, middle: np.ndarray, high: np.ndarray, **line: Any
) -> None:
    """Draw a range and a dot for each section."""
    place = _over_sections(axes, rows)
    axes.axhline(1, color=FAINT, linewidth=0.8)
    axes.vlines(place, low, high, color=AFTER, **line)
    axes.plot(place, middle, color=INK, linestyle="none", marker="o", markersize=3)


@plot("steps", NARROW, "Step at each cut", "percent, log scale")
def steps(axes: Axes, rows: Sequence[dict[str, Any]], numbers: dict[str, Any]) -> None:
    """Size of the step at every cut, before and after, and the change between planes that is usual inside sections."""
    place = _over_sections(axes, rows)
    for time, colour, marker in (("before", BEFORE, "o"), ("after", AFTER, "s")):
        sizes = np.expm1(np.abs(np.array([row[f"step_{time}"] for row in rows], float))) * 100
        sizes = np.maximum(sizes, SMALLEST_STEP)
        axes.plot(place, sizes, color=colour, linestyle="none", marker=marker, markersize=3.5, label=time)
    usual = numbers["inside_sections_after"]
    if usual is not None:
        bottom, top = SMALLEST_STEP / 2, max(np.expm1(usual) * 100, SMALLEST_STEP)
        axes.axhspan(bottom, top, color=FAINT, alpha=0.35, linewidth=0, label="usual inside sections, after")
    _legend(axes, 3, handletextpad=0.3, columnspacing=1)
    axes.set_yscale("log")
    axes.set_ylim(bottom=SMALLEST_STEP / 2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()


@plot("histograms", NARROW, "Histogram of tissue", "percent of pixels")
def histograms(
    axes: Axes, before: np.ndarray, after: np.ndarray, level: float, threshold: float | None, top: float
) -> None:
    """Histogram of tissue before and after, and the threshold between the two classes whose contrast is measured."""
    edges = np.linspace(level, top, 121)
    for values, colour, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
        share, _edges = np.histogram(values + level, edges)
        axes.stairs(share / max(values.size, 1) * 100, edges, color=colour, linewidth=1.3, label=label)
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=0.8, linestyle=(0, (4, 2)), label="between classes")
    _legend(axes, 3, columnspacing=1)
    axes.set_xlabel("intensity")
    axes.set_xlim(level, top)
    axes.set_ylim(bottom=0)
