"""The report in a real browser: what a reader drags, presses and points at, and that nothing leaves the page.

Runs where a Chromium is on PATH, and says so where there is none.
"""

import io
import json
import re

import numpy as np
import pytest
from browser import NAMES, Page, executable
from page_examples import SHAPE, made, report
from PIL import Image

from n4flow.report.pair import Pair

if executable() is None:
    pytest.skip(f"no browser is on PATH; one of {', '.join(NAMES)} is needed", allow_module_level=True)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A page of the small volume, its viewer started, and its text and metrics."""
    folder = tmp_path_factory.mktemp("browser")
    text, _page, numbers = report(folder / "report.html", made(flags=("ok", "damaged", "ok")), megabytes=3)
    with Page(folder / "profile", 1100, 800) as page:
        page.open(folder / "report.html")
        page.js("viewer.start()")
        yield page, text, numbers
        # of all tests together
        assert page.errors == []
        assert page.requests == [(folder / "report.html").as_uri()]


def readout(page):
    return page.js("document.getElementById('readout').textContent")


def place(page):
    return dict(zip("xyz", page.js("viewer.state().place"), strict=True))


def seen(page, plane="xy"):
    """Return the grey levels of a plane on the screen in the middles of the pixels of the volume, (down, across)."""
    left, top, _width, _height = page.box(".stage")
    number = ("xy", "xz", "yz").index(plane)
    tile = f"viewer.state().shown.after.screenSlices.find((one) => one.axCorSag === {number})"
    x, y, width, height = page.js(f"[...{tile}.leftTopWidthHeight]")
    page.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    image = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), float)
    assert np.ptp(image[int(top + y) + 2, int(left + x) + 2]) < 1  # grey
    down, across = {"xy": (40, 56), "xz": (9, 56), "yz": (9, 40)}[plane]
    rows = (top + y + (np.arange(down) + 0.5) * height / down).astype(int)
    columns = (left + x + (np.arange(across) + 0.5) * width / across).astype(int)
    return image[np.ix_(rows, columns)].mean(axis=-1)


def expected(time, z):
    """Return the values of a plane in the result's units, and where they are valid."""
    pair = Pair(**made(flags=("ok", "damaged", "ok")))
    return getattr(pair, time)(z), pair.valid(z)


def differs(page, text, time, z):
    """Return how far the plane on the screen is from the volume, in grey levels, the cross-hair left out."""
    facts = json.loads(re.search(r'id="facts">(.*?)</script>', text, re.S)[1])["viewer"]
    low, high = facts["range"]["after"]
    first, last = (low + (level - 1) / 254 * (high - low) for level in facts["windows"]["tissue"])
    values, valid = expected(time, z)
    wanted = np.where(valid, np.clip((values - first) / (last - first), 0, 1) * 255, 0)
    away = np.abs(seen(page) - wanted)
    away[place(page)["y"]], away[:, place(page)["x"]] = 0, 0
    return float(np.percentile(away, 99))


def test_the_slider_goes_through_the_planes_and_the_key_switches_before_and_after(opened):
    page, text, _numbers = opened
    page.js("document.querySelector('[data-swipe=\"0\"]').click()")
    left, top, width, height = page.box('[name="z"]')
    page.drag((left + width / 2, top + height / 2), (left + 0.9 * width, top + height / 2))
    z = place(page)["z"]
    assert z in (7, 8)  # of 0 to 8, from 4
    assert readout(page).startswith(f"z {z}, y ")
    assert "section s2" in readout(page)
    assert differs(page, text, "after", z) < 3  # rounded twice, to levels and to what the screen has
    assert differs(page, text, "before", z) > 8
    page.key("b")
    assert differs(page, text, "before", z) < 3
    page.key("b")
    assert differs(page, text, "after", z) < 3
    page.key(",")
    assert place(page)["z"] == z - 1


def test_the_cross_hair_is_shared_and_the_line_below_says_the_value(opened):
    page, _text, _numbers = opened
    page.js("document.querySelector('[data-swipe=\"0\"]').click()")
    left, top, _width, _height = page.box(".stage")
    x, y, width, height = page.js("[...viewer.state().shown.after.screenSlices[0].leftTopWidthHeight]")
    page.click(left + x + width * 20.5 / 56, top + y + height * 15.5 / 40)
    page.until("viewer.state().place[0] === 20")
    assert place(page) | {"z": 0} == {"x": 20, "y": 15, "z": 0}
    z = place(page)["z"]
    values = {time: expected(time, z)[0][15, 20] for time in ("before", "after")}
    said = {time: float(re.search(rf"{time} (?:at most |at least )?(-?[\d.]+)", readout(page))[1]) for time in values}
    facts = page.js("facts.viewer.range.after")
    assert said == pytest.approx(values, abs=(facts[1] - facts[0]) / 254)
    assert "tissue" in readout(page)
    hairs = page.js("['before', 'after'].map((time) => [...viewer.state().shown[time].scene.crosshairPos])")
    assert hairs[0] == pytest.approx(hairs[1], abs=0.02)


def test_the_swipe_shows_before_on_the_left_and_after_on_the_right_of_each_plane(opened):
    page, _text, _numbers = opened
    page.js("viewerGo(4)")
    page.js("document.querySelector('[data-swipe=\"50\"]').click()")
    both = seen(page)
    shown = {}
    for time, share in (("before", 100), ("after", 0)):
        page.js(f"document.querySelector('[data-swipe=\"{share}\"]').click()")
        shown[time] = seen(page)
    assert np.abs(both[:, :26] - shown["before"][:, :26]).max() <= 2
    assert np.abs(both[:, 30:] - shown["after"][:, 30:]).max() <= 2
    assert np.abs(shown["before"] - shown["after"]).max() > 20


def test_overlays_and_windows_change_what_is_seen(opened):
    page, _text, _numbers = opened
    page.js("document.querySelector('[data-swipe=\"0\"]').click()")
    plain = seen(page, "xz")
    for name in ("masks", "field"):
        page.js(f"document.querySelector('[name={name}]').click()")
        page.until(f"viewer.state().shown.after.volumes.some((one) => one.name === '{name}.nii' && one.opacity > 0)")
        page.box(".stage")
        page.js("new Promise((done) => setTimeout(done, 300))")
        image = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), float)
        left, top, width, height = (int(n) for n in page.box(".stage"))
        assert np.ptp(image[top : top + height, left : left + width], axis=-1).max() > 30  # coloured
        page.js(f"document.querySelector('[name={name}]').click()")
        page.until(f"viewer.state().shown.after.volumes.every((one) => one.name !== '{name}.nii' || one.opacity === 0)")
    page.js("document.querySelector('[data-window=background]').click()")
    assert np.abs(seen(page, "xz") - plain).max() > 20
    page.js("document.querySelector('[data-window=tissue]').click()")
    assert np.abs(seen(page, "xz") - plain).max() <= 2


def test_a_picture_of_a_section_leads_to_its_plane(opened):
    page, _text, numbers = opened
    left, top, width, height = page.box(".strip li:last-child a.look")
    page.click(left + width / 4, top + height / 2)
    shown = page.js("document.querySelector('.strip li:last-child a.look').dataset.plane")
    page.until(f"viewer.state().place[2] === {shown}")
    named = page.js("document.querySelector('.strip li:last-child p a').textContent")
    assert f"section {named}" in readout(page)
    assert [row["id"] for row in numbers["sections"] if row["z_start"] <= int(shown) < row["z_stop"]] == [named]


def test_plots_say_plane_section_and_value(opened):
    page, _text, numbers = opened
    left, top, width, height = page.box(".plots svg")
    start, stop, last = page.js(
        "((p) => [p.left, p.right, document.querySelector('.plots svg').viewBox.baseVal.width])"
        "(JSON.parse(document.querySelector('.plots svg').dataset.points))"
    )
    z = 4
    across = left + width / last * (start + (z + 0.5) / SHAPE[0] * (stop - start))
    page.mouse("mouseMoved", across, top + height / 2)
    page.until("!document.querySelector('.plots .tip').hidden")
    said = page.js("document.querySelector('.plots .tip').textContent")
    values = [float(f"{numbers['planes'][f'tissue_{time}'][z]:.4g}") for time in ("before", "after")]
    assert said == f"plane 4, section s1 · before {values[0]:g} · after {values[1]:g}"


def test_paths_are_those_of_the_file(opened):
    page, _text, _numbers = opened
    folder = page.js("decodeURIComponent(location.pathname)").removesuffix("report.html")
    assert page.js("document.querySelector('[data-path]').textContent") == f"{folder}brain 1.ome.zarr"
    quoted = page.js("[...document.querySelectorAll('[data-quoted]')].map((one) => one.textContent)")
    assert quoted == [folder.rstrip("/"), f"'{folder}brain 1.ome.zarr'"]


def test_a_narrow_screen_needs_no_scrolling_sideways(opened):
    page, _text, _numbers = opened
    page.resize(390, 800)
    try:
        page.until("document.documentElement.clientWidth === 390")
        assert page.js("document.documentElement.scrollWidth") <= 390
    finally:
        page.resize(1100, 800)


def test_without_webgl_the_page_says_so_and_keeps_its_pictures(tmp_path):
    report(tmp_path / "report.html", made(), megabytes=3)
    with Page(tmp_path / "profile") as page:
        page.call(
            "Page.addScriptToEvaluateOnNewDocument", source="HTMLCanvasElement.prototype.getContext = () => null;"
        )
        page.open(tmp_path / "report.html")
        page.js("viewer.start()")
        assert "this browser has no WebGL 2" in page.js("document.getElementById('viewer-said').textContent")
        assert page.js("document.getElementById('viewer').hidden")
        assert page.js("document.querySelectorAll('svg.panel image').length") >= 9
        assert page.errors == []
