"""The plots of a report: small charts along Z and over sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from n4flow.report.chart import AFTER, BEFORE, DASHES, FAINT, FLAG, INK, NARROW, WIDE, Chart
from n4flow.sections import SectionTable

SMALLEST_STEP = 0.1  # Steps smaller than this, in percent, are drawn at this height.


def _along_z(width: int, title: str, y_label: str, sections: SectionTable) -> Chart:
    """Return a chart along Z with the cuts between sections and the flagged sections."""
    chart = Chart(width, title, "plane", y_label, (-0.5, sections.n_planes - 0.5), planes=True)
    hair = sections.n_planes / width / 2  # of half a point
    if len(sections) < sections.n_planes:
        for section in sections[1:]:
            chart.band(section.z_start - 0.5 - hair / 2, section.z_start - 0.5 + hair / 2, FAINT, 0.6)
    for section in sections:
        if not section.usable:
            chart.band(section.z_start - 0.5, section.z_stop - 0.5, FLAG, 0.25)
    return chart


def _over_sections(title: str, y_label: str, rows: Sequence[dict[str, Any]], **options: Any) -> Chart:
    """Return a chart over sections, flagged ones marked."""
    every = max(1, -(-len(rows) // 12))
    ticks = [(float(i), str(rows[i]["id"])) for i in range(0, len(rows), every)]
    names = [str(row["id"]) for row in rows]
    chart = Chart(NARROW, title, "section", y_label, (-0.5, len(rows) - 0.5), ticks, names=names, **options)
    for number, row in enumerate(rows):
        if row["flag"] != "ok":
            chart.band(number - 0.5, number + 0.5, FLAG, 0.25)
    return chart


def _two_lines(title: str, planes: dict[str, Any], what: str, sections: SectionTable) -> Chart:
    chart = _along_z(WIDE, title, "intensity", sections)
    z = np.arange(sections.n_planes)
    # The line of before is wider, so that it stays visible where both are equal.
    for time, colour, width in (("before", BEFORE, 2.4), ("after", AFTER, 1.2)):
        values = np.array(planes[f"{what}_{time}"], float)
        chart.line(z, values, colour, width, time)
        if np.isfinite(values).sum() <= 60:
            chart.scatter(z, values, colour, 2.5)
    return chart


def plane_means(planes: dict[str, Any], sections: SectionTable) -> str:
    """Mean of tissue in every plane, before and after."""
    return _two_lines("Mean of tissue in each plane", planes, "tissue", sections).svg(bottom=0)


def agarose_levels(planes: dict[str, Any], sections: SectionTable) -> str:
    """Agarose level of every plane, before and after."""
    return _two_lines("Agarose level in each plane", planes, "agarose", sections).svg()


def gains(planes: dict[str, Any], sections: SectionTable, level: float, smoothing: np.ndarray | None) -> str:
    """Ratio of each plane's mean signal after to before, and the part of it that is due to smoothing along Z."""
    chart = _along_z(NARROW, "Gain of each plane", "after / before", sections)
    before, after = (np.array(planes[f"tissue_{time}"], float) - level for time in ("before", "after"))
    total = np.divide(after, before, out=np.full_like(after, np.nan), where=before > 0)
    z = np.arange(sections.n_planes)
    chart.line(chart.x, (1, 1), FAINT, 0.8)
    chart.line(z, total, AFTER, 1.3, "all steps")
    if smoothing is not None:
        chart.line(z, smoothing, INK, 1.0, "of it, Z smoothing", DASHES)
    chart.least = [0.95, 1.05]
    return chart.svg()


def field_ranges(rows: Sequence[dict[str, Any]]) -> str:
    """First to 99th percentile of the bias field in each section's tissue."""
    low, middle, high = (np.array([row[f"bias_{p}"] for row in rows], float) for p in ("p1", "p50", "p99"))
    chart = _over_sections("Bias field in each section: p1 to p99, dot: median", "input / corrected", rows)
    return _ranges(chart, low, middle, high, min(4.0, max(0.8, 200 / len(rows))), 0.6, ("p1", "median", "p99"))


def section_gains(rows: Sequence[dict[str, Any]], numbers: dict[str, Any]) -> str:
    """Gain of every section that the harmonisation estimated, with twice its uncertainty."""
    gain, sd = np.array(numbers["gain"], float), np.array(numbers["gain_sd"], float)
    chart = _over_sections("Gain of each section, and twice its uncertainty", "input / corrected", rows)
    low, high = gain * np.exp(-2 * sd), gain * np.exp(2 * sd)
    return _ranges(chart, low, gain, high, 1.2, 0.7, ("at least", "gain", "at most"))


def _ranges(
    chart: Chart,
    low: np.ndarray,
    middle: np.ndarray,
    high: np.ndarray,
    width: float,
    opacity: float,
    labels: tuple[str, str, str],
) -> str:
    """Draw a range and a dot for each section."""
    place, gap = np.arange(len(middle)), np.full(len(middle), np.nan)
    chart.line(chart.x, (1, 1), FAINT, 0.8)
    chart.line(np.repeat(place, 3), np.stack([low, high, gap], 1).reshape(-1), AFTER, width, opacity=opacity)
    chart.scatter(place, middle, INK, 3)
    for label, values in zip(labels, (low, middle, high), strict=True):
        chart.tell(label, place, values)
    return chart.svg()


def steps(rows: Sequence[dict[str, Any]], numbers: dict[str, Any]) -> str:
    """Size of the step at every cut, before and after, and the change between planes that is usual inside sections."""
    chart = _over_sections("Step at each cut", "percent, log scale", rows, log=True)
    for time, colour in (("before", BEFORE), ("after", AFTER)):
        sizes = np.expm1(np.abs(np.array([row[f"step_{time}"] for row in rows], float))) * 100
        sizes = np.maximum(sizes, SMALLEST_STEP)
        chart.scatter(np.arange(len(rows)), sizes, colour, 3.5, time, square=time == "after")
    usual = numbers["inside_sections_after"]
    if usual is not None:
        top = max(np.expm1(usual) * 100, SMALLEST_STEP)
        chart.level_band(SMALLEST_STEP / 2, top, FAINT, 0.35, "usual inside sections, after")
    return chart.svg(bottom=SMALLEST_STEP / 2)


def histograms(before: np.ndarray, after: np.ndarray, level: float, threshold: float | None, top: float) -> str:
    """Histogram of tissue before and after, and the threshold between the two classes whose contrast is measured."""
    edges = np.linspace(level, top, 121)
    chart = Chart(NARROW, "Histogram of tissue", "intensity", "percent of pixels", (level, top))
    for values, colour, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
        share = np.histogram(values + level, edges)[0] / max(values.size, 1) * 100
        outline = np.concatenate([[0], np.repeat(share, 2), [0]])
        chart.line(np.repeat(edges, 2), outline, colour, 1.3, label)
    if threshold is not None:
        highest = max(float(np.nanmax(y)) for _x, y, _look in chart.lines)
        chart.line((threshold, threshold), (0, highest), INK, 0.8, "between classes", DASHES)
    return chart.svg(bottom=0)
