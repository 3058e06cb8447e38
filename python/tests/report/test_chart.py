"""Charts: what is drawn lies where the axes say it does."""

import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.path import Path as Outline

from n4flow.report.chart import Chart, decades, thinned, ticks
from n4flow.report.pictures import field_colours, outline


def drawn(chart: Chart, **options) -> ET.Element:
    return ET.fromstring(chart.svg(**options))


def scales(svg: ET.Element, log: bool = False):
    """Return functions from places to numbers of both axes, from the labelled ticks alone."""
    texts = [(t.text, float(t.get("x")), float(t.get("y")), t.get("text-anchor")) for t in svg.findall("text")]
    number = [(float(text), x, y, anchor) for text, x, y, anchor in texts if re.fullmatch(r"-?[\d.]+", text or "")]
    across = np.polyfit(*zip(*((x, value) for value, x, _y, anchor in number if anchor == "middle"), strict=True), 1)
    marks = [(y - 3, np.log10(value) if log else value) for value, _x, y, anchor in number if anchor == "end"]
    up = np.polyfit(*zip(*marks, strict=True), 1)
    return lambda x: np.polyval(across, x), lambda y: 10 ** np.polyval(up, y) if log else np.polyval(up, y)


def test_a_line_and_its_gap_lie_where_the_ticks_say():
    chart = Chart(400, "a < b", "x", "y", (0, 100))
    x, y = np.array([0.0, 20, 40, 60, 100]), np.array([3.0, 7, np.nan, -2, 5])
    chart.line(x, y, "red", 1, "both & more")
    svg = drawn(chart)
    across, up = scales(svg)
    (path,) = [p.get("d") for p in svg.findall("path") if p.get("stroke") == "red" and "L" in p.get("d")]
    first, second = path[1:].split("M")
    points = np.array([p.split(",") for p in re.split("L", first) + re.split("L", second)], float)
    np.testing.assert_allclose(across(points[:, 0]), x[[0, 1, 3, 4]], atol=0.1)
    np.testing.assert_allclose(up(points[:, 1]), y[[0, 1, 3, 4]], atol=0.02)
    assert {"a < b", "both & more"} <= {text.text for text in svg.findall("text")}


def test_dots_on_a_log_scale():
    chart = Chart(400, "", "x", "y", (-1, 8), log=True)
    values = np.array([0.1, 2.0, np.nan, 30.0])
    chart.scatter([0, 1, 2, 7], values, "red", 3)
    svg = drawn(chart, bottom=0.05)
    across, up = scales(svg, log=True)
    dots = np.array([[c.get("cx"), c.get("cy")] for c in svg.iter("circle")], float)
    np.testing.assert_allclose(across(dots[:, 0]), [0, 1, 7], atol=0.02)
    np.testing.assert_allclose(up(dots[:, 1]), values[[0, 1, 3]], rtol=0.01)


@pytest.mark.parametrize("values", [[], [np.nan], [0.0], [5.0, 5.0], [-5.0, -3.0], [1e-6, 1e6]])
def test_any_numbers_make_a_chart(values):
    chart = Chart(400, "", "", "", (-0.5, 2.5))
    chart.line(np.arange(len(values)), values, "red", 1)
    chart.scatter(np.arange(len(values)), values, "red", 1, square=True)
    assert not re.search("nan|inf", chart.svg())
    assert not re.search("nan|inf", chart.svg(bottom=0))  # below which all may lie


def test_ticks_are_round_numbers():
    assert ticks(0.94, 1.06, 5) == [(0.95, "0.95"), (1.0, "1.00"), (1.05, "1.05")]
    assert [text for _value, text in ticks(-0.5, 39.5, 4)] == ["0", "10", "20", "30"]
    assert decades(0.05, 20) == [(0.1, "0.1"), (1.0, "1"), (10.0, "10")]


def test_a_long_line_keeps_its_extremes_and_its_gaps():
    y = np.random.default_rng(0).normal(size=100_000)
    y[500], y[70_000], y[30_000:40_000] = 40, -40, np.nan
    x, thin = thinned(np.linspace(0, 700, len(y)), y, 700)
    assert len(thin) < 5000
    assert (np.nanmax(thin), np.nanmin(thin)) == (40, -40)
    between = (x > 211) & (x < 279)
    assert between.any()
    assert np.isnan(thin[between]).all()


def test_colours_are_those_of_matplotlib():
    values = np.linspace(0, 1, 256)
    expected = mpl.colormaps["PuOr_r"](values, bytes=True)[:, :3].astype(int)
    assert np.abs(field_colours(values).astype(int) - expected).max() <= 1  # matplotlib truncates


def test_an_outline_is_the_mask():
    y, x = np.mgrid[:40, :50]
    mask = (np.hypot(y - 20, x - 22) < 15) & ~((y > 15) & (y < 22) & (x > 10) & (x < 30))
    inside = np.zeros(mask.shape, bool)
    centres = np.stack([x.ravel() + 0.5, y.ravel() + 0.5], 1)
    for part in outline(mask, 1, 1).strip("MZ").split("ZM"):
        corners = np.array([point.split(",") for point in part.split()], float)
        inside ^= Outline(corners).contains_points(centres).reshape(mask.shape)
    np.testing.assert_array_equal(inside, mask)
    square = outline(np.ones((30, 30), bool), 1, 1)
    assert square.count(",") <= 8  # points on a line are left out
