"""The plots of a report: small line plots along Z and over sections, as SVG that takes its colours from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
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


def as_floats(values: Sequence[float | None]) -> np.ndarray:
    """Return numbers with NaN for None."""
    return np.array([np.nan if value is None else value for value in values], np.float64)


def draw(name: str, width: float, paint: Callable[[Axes], Any]) -> str:
    """Return a plot as inline SVG: `paint` draws it into axes, and `name` makes its ids unique on the page."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, HEIGHT), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        paint(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(stream.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Return SVG for use inside a page: no prologue, no namespaces, unique ids, and the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(
        r'(<svg [^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
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


def _two_lines(axes: Axes, before: np.ndarray, after: np.ndarray) -> None:
    marker = "o" if np.isfinite(before).sum() <= 60 else None
    # The line of before is wider, so that it stays visible where both are equal.
    for values, colour, label, width in ((before, BEFORE, "before", 2.4), (after, AFTER, "after", 1.2)):
        axes.plot(values, color=colour, linewidth=width, marker=marker, markersize=2.5, label=label)
    axes.legend(loc="upper right", ncols=2, bbox_to_anchor=(1, 1.16), borderaxespad=0)


def plane_means(planes: dict[str, Any], sections: SectionTable) -> str:
    """Mean of tissue in every plane, before and after."""

    def paint(axes: Axes) -> None:
        _along_z(axes, sections)
        _two_lines(axes, as_floats(planes["tissue_before"]), as_floats(planes["tissue_after"]))
        axes.set_title("Mean of tissue in each plane")
        axes.set_ylabel("intensity")
        axes.set_ylim(bottom=0)

    return draw("means", WIDE, paint)


def agarose_levels(planes: dict[str, Any], sections: SectionTable) -> str:
    """Agarose level of every plane, before and after."""

    def paint(axes: Axes) -> None:
        _along_z(axes, sections)
        _two_lines(axes, as_floats(planes["agarose_before"]), as_floats(planes["agarose_after"]))
        axes.set_title("Agarose level in each plane")
        axes.set_ylabel("intensity")

    return draw("agarose", WIDE, paint)


def gains(planes: dict[str, Any], sections: SectionTable, level: float, smoothing: np.ndarray | None) -> str:
    """Ratio of each plane's mean signal after to before, and the part of it that is due to smoothing along Z."""

    def paint(axes: Axes) -> None:
        _along_z(axes, sections)
        before, after = as_floats(planes["tissue_before"]) - level, as_floats(planes["tissue_after"]) - level
        total = np.divide(after, before, out=np.full_like(after, np.nan), where=before > 0)
        axes.axhline(1, color=FAINT, linewidth=0.8)
        axes.plot(total, color=AFTER, linewidth=1.3, label="all steps")
        if smoothing is not None:
            axes.plot(smoothing, color=INK, linewidth=1.0, linestyle=(0, (4, 2)), label="of it, Z smoothing")
        axes.legend(loc="upper right", ncols=2, bbox_to_anchor=(1, 1.16), borderaxespad=0)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.95), max(high, 1.05))
        axes.set_title("Gain of each plane")
        axes.set_ylabel("after / before")

    return draw("gains", NARROW, paint)


def field_ranges(rows: Sequence[dict[str, Any]]) -> str:
    """First to 99th percentile of the bias field in each section's tissue."""

    def paint(axes: Axes) -> None:
        low, middle, high = (as_floats([row[f"bias_{p}"] for row in rows]) for p in ("p1", "p50", "p99"))
        place = np.arange(len(rows))
        axes.axhline(1, color=FAINT, linewidth=0.8)
        axes.vlines(place, low, high, color=AFTER, linewidth=min(4.0, max(0.8, 200 / len(rows))), alpha=0.6)
        axes.plot(place, middle, color=INK, linestyle="none", marker="o", markersize=3)
        axes.set_title("Bias field in each section: p1 to p99, dot: median")
        axes.set_ylabel("input / corrected")
        _section_axis(axes, rows)

    return draw("fields", NARROW, paint)


def section_gains(rows: Sequence[dict[str, Any]], numbers: dict[str, Any]) -> str:
    """Gain of every section that the harmonisation estimated, with twice its uncertainty."""

    def paint(axes: Axes) -> None:
        gain, sd = as_floats(numbers["gain"]), as_floats(numbers["gain_sd"])
        axes.axhline(1, color=FAINT, linewidth=0.8)
        place = np.arange(len(rows))
        axes.vlines(place, gain * np.exp(-2 * sd), gain * np.exp(2 * sd), color=AFTER, linewidth=1.2, alpha=0.7)
        axes.plot(place, gain, color=INK, linestyle="none", marker="o", markersize=3)
        axes.set_title("Gain of each section, and twice its uncertainty")
        axes.set_ylabel("input / corrected")
        _section_axis(axes, rows)

    return draw("section-gains", NARROW, paint)


def steps(rows: Sequence[dict[str, Any]], numbers: dict[str, Any]) -> str:
    """Size of the step at every cut, before and after, and the change between planes that is usual inside sections."""

    def paint(axes: Axes) -> None:
        for time, colour, marker in (("before", BEFORE, "o"), ("after", AFTER, "s")):
            sizes = np.expm1(np.abs(as_floats([row[f"step_{time}"] for row in rows]))) * 100
            sizes = np.maximum(sizes, SMALLEST_STEP)
            axes.plot(
                np.arange(len(rows)), sizes, color=colour, linestyle="none", marker=marker, markersize=3.5, label=time
            )
        usual = numbers["inside_sections_after"]
        if usual is not None:
            top = max(np.expm1(usual) * 100, SMALLEST_STEP)
            axes.axhspan(
                SMALLEST_STEP / 2, top, color=FAINT, alpha=0.35, linewidth=0, label="usual inside sections, after"
            )
        axes.legend(
            loc="upper right", ncols=3, bbox_to_anchor=(1, 1.16), borderaxespad=0, handletextpad=0.3, columnspacing=1
        )
        axes.set_title("Step at each cut")
        axes.set_ylabel("percent, log scale")
        axes.set_yscale("log")
        axes.set_ylim(bottom=SMALLEST_STEP / 2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        _section_axis(axes, rows)

    return draw("steps", NARROW, paint)


def histograms(before: np.ndarray, after: np.ndarray, level: float, threshold: float | None, top: float) -> str:
    """Histogram of tissue before and after, and the threshold between the two classes whose contrast is measured."""

    def paint(axes: Axes) -> None:
        edges = np.linspace(level, top, 121)
        for values, colour, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
            share, _edges = np.histogram(values + level, edges)
            axes.stairs(share / max(values.size, 1) * 100, edges, color=colour, linewidth=1.3, label=label)
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=0.8, linestyle=(0, (4, 2)), label="between classes")
        axes.legend(loc="upper right", ncols=3, bbox_to_anchor=(1, 1.16), borderaxespad=0, columnspacing=1)
        axes.set_title("Histogram of tissue")
        axes.set_ylabel("percent of pixels")
        axes.set_xlabel("intensity")
        axes.set_xlim(level, top)
        axes.set_ylim(bottom=0)

    return draw("histograms", NARROW, paint)


def _section_axis(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    axes.set_xlim(-0.5, len(rows) - 0.5)
    every = max(1, -(-len(rows) // 12))
    axes.set_xticks(range(0, len(rows), every), [rows[i]["id"] for i in range(0, len(rows), every)])
    axes.set_xlabel("section")
    for number, row in enumerate(rows):
        if row["flag"] != "ok":
            axes.axvspan(number - 0.5, number + 0.5, color=FLAG, alpha=0.25, linewidth=0, zorder=0)
