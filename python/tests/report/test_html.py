"""The report: one file that needs nothing else, with the right pixels, numbers and words."""

import base64
import gzip
import hashlib
import io
import json
import os
import re

import numpy as np
import pytest
from page_examples import ESTIMATES, SHAPE, STAGES, VOXEL_UM, made, report
from PIL import Image

from n4flow.report import metrics as table
from n4flow.report.assessment import Limit, above
from n4flow.report.html import backends, grouped, merged, next_step, stores
from n4flow.report.metrics import Metric, sections_table
from n4flow.report.pair import Pair
from n4flow.report.pictures import Views, data_uri, field_limit, nice_length, outline, windows
from n4flow.report.strip import worst_first
from n4flow.report.text import percent
from n4flow.sections import Section, SectionTable
from n4flow.statistics.measure import shrink_planes

VOLUMES = ("before", "after", "masks", "field")


def test_the_page_needs_nothing_else(tmp_path):
    text, page, _numbers = report(tmp_path / "report.html", made())
    assert text.lstrip().startswith("<!DOCTYPE html>")
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert not re.search(r"@import|<link|<iframe|javascript:|fetch\(|XMLHttpRequest|WebSocket", text)
    assert all(use.startswith("#") for use in re.findall(r"url\(([^)]*)\)", text))
    assert len(text) < 1_000_000
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_browser_may_run_the_page_s_own_scripts_alone_and_asks_no_address(tmp_path):
    text, _page, _numbers = report(tmp_path / "report.html", made(), megabytes=2)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
    rules = {rule.split()[0]: set(rule.split()[1:]) for rule in policy.split(";")}
    code = re.findall(r"<script>(.*?)</script>", text, re.S)
    digests = {f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in code}
    assert rules == {
        "default-src": {"'none'"},
        "img-src": {"data:", "blob:"},
        "style-src": {"'unsafe-inline'"},
        "script-src": {*digests, "blob:"},
    }
    assert len(code) == 2
    assert set(re.findall(r"<script([^>]*)>", text)) == {
        "",
        ' type="application/json" id="facts"',
        *(f' type="application/octet-stream" id="{name}"' for name in ("niivue", *map("volume-{}".format, VOLUMES))),
    }
    assert "Redistribution and use in source and binary forms" in text  # the viewer's licence goes with its code


def test_the_viewer_has_the_volume_and_its_places(tmp_path):
    arrays = made()
    text, _page, numbers = report(tmp_path / "report.html", arrays, megabytes=2)
    facts = json.loads(re.search(r'id="facts">(.*?)</script>', text, re.S)[1])["viewer"]
    found = {
        name: np.frombuffer(
            gzip.decompress(base64.b64decode(re.search(rf'id="volume-{name}">(.*?)</script>', text)[1])), np.uint8
        ).reshape(facts["shape"])
        for name in VOLUMES
    }
    assert facts["shape"] == list(SHAPE)  # small enough to be whole
    pair = Pair(**arrays)
    valid = arrays["before"].valid > 0
    for time in ("before", "after"):
        low, high = facts["range"][time]
        wanted = np.stack([getattr(pair, time)(z) for z in range(SHAPE[0])])
        levels = np.clip((wanted - low) / (high - low), 0, 1) * 254 + 1
        assert np.abs(found[time] - levels)[valid].max() <= 0.51  # rounded to grey levels
        assert not found[time][~valid].any()
    assert np.array_equal(found["masks"] == 1, arrays["tissue"] & valid)
    assert np.array_equal(found["masks"] == 2, arrays["agarose"] & ~arrays["tissue"] & valid)
    field = arrays["recipe"][0].fields[0][2].log_field()
    inside = np.abs(field) < np.log(facts["limit"])
    levels = (field / np.log(facts["limit"]) + 1) / 2 * 254 + 1
    assert np.abs(found["field"] - levels)[inside].max() <= 0.51
    assert (facts["limit"], facts["planes"], facts["voxels"]) == (
        field_limit(numbers["bias_field"]),
        [0, 1],
        {"origin": [0, 0], "size": 1},
    )


def test_every_id_is_unique_and_every_reference_resolves(tmp_path):
    text, page, _numbers = report(tmp_path / "report.html", made())
    assert len(page.ids) == len(set(page.ids))
    assert {f"section-{number}" for number in range(3)} <= set(page.ids)
    used = {link[1:] for link in page.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]*)\)", text))
    assert used <= set(page.ids)
    assert not re.search(r"#01020[3-7]", text)  # every colour of the plots follows the page


def test_the_page_says_the_numbers(tmp_path):
    arrays = made(flags=("ok", "ok", "damaged"))
    warning = "the mask touches the border"
    _text, page, numbers = report(tmp_path / "report.html", arrays, warnings=[warning])
    words = page.words()
    bias, contrast = numbers["bias_field"], numbers["contrast"]
    for expected in (
        "9 × 40 × 56 voxels",
        "50 × 10 × 10 µm",
        "uint16, ome-zarr",
        "3, 1 flagged",
        warning,
        "2 of 3 sections pass; look at s2.",
        "Bias field divided out; brightness of tissue smoothed along Z.",
        "N4 backend itk",
        "1 min 5 s, all tasks added up",
        f"{numbers['tissue']['cv_before']:.1%} {numbers['tissue']['cv_after']:.1%}",
        f"{contrast['kept']:.1%} kept",
        f"{bias['p1']:.4g} · {bias['p50']:.4g} · {bias['p99']:.4g}",
        f"+{np.expm1(numbers['sections'][1]['step_before']):.1%}",
        "flagged damaged, so it entered no estimate",
        "spline_um not given",
        "sigma planes 2",
    ):
        assert expected in words, expected
    cubic_mm = arrays["tissue"].sum() * 50 * 10 * 10 / 1e9
    assert f"estimated, {arrays['tissue'].mean():.1%} of the volume, {cubic_mm:.3g} mm³" in words


def test_the_first_screen_says_what_to_do():
    rows = [{"status": "pass"}]
    for verdict, warned, sentence in (
        ({"status": "pass", "changed": False}, False, "There is nothing to do."),
        ({"status": "pass", "changed": True}, False, "The result can be used."),
        ({"status": "pass", "changed": True}, True, "The result can be used. Sections with a warning of their own:"),
        (
            {"status": "look", "changed": True},
            False,
            "Compare before and after below, and try what the sentence names.",
        ),
    ):
        assert next_step(verdict, rows + [{"status": "warn"}] * warned) == sentence


def test_sections_that_deserve_a_look_come_first(tmp_path):
    text, _page, numbers = report(tmp_path / "report.html", made(flags=("ok", "damaged", "ok")), megabytes=0)
    strip = re.search(r'<ul class="strip">(.*?)</ul>', text, re.S)[1]
    named = re.findall(r'href="#section-(\d)" data-plane="(\d)"', strip)
    status = [row["status"] for row in numbers["sections"]]
    assert named[0] == ("1", "4")  # the middle plane of planes 3 to 5
    assert status == ["pass", "warn", "pass"]
    assert strip.count("data:image/jpeg") == 6


def test_of_many_sections_the_worst_are_pictured():
    rows = [
        {"status": "pass", "flag": "ok", "local_contrast_kept": 1.0, "step_after": 0.001 * n, "unproven": None}
        for n in range(300)
    ]
    rows[7] |= {"status": "warn"}
    rows[9] |= {"status": "warn", "flag": "damaged"}
    found = [row["number"] for row in worst_first(rows)]
    assert found == [7, 9, *range(299, 241, -1)]


def test_the_page_says_where_the_results_are_and_how_to_do_it_again(tmp_path):
    _text, page, _numbers = report(tmp_path / "r.html", made(), parameters={"outdir": "my results"})
    words = page.words()
    assert "my results/brain 1/brain 1.ome.zarr my results/brain 1/mask.ome.zarr" in words
    assert "n4flow view 'my results/brain 1'" in words
    assert "napari 'my results/brain 1/brain 1.ome.zarr'" in words
    assert "n4flow run 'a b' out" in words


@pytest.mark.parametrize(
    ("volume", "fitted", "seen"),
    [
        ({}, None, ["b.ome.zarr", "mask.ome.zarr", "."]),
        ({"channel": 1}, "each", ["../b.ome.zarr", "mask.ome.zarr", ".."]),
        ({"channel": 1}, 0, ["../b.ome.zarr", "../mask.ome.zarr", ".."]),
        ({"channel": 1, "mask": "given"}, "each", ["../b.ome.zarr", "../mask.ome.zarr", ".."]),
    ],
)
def test_a_channel_s_page_finds_the_stores_of_all(volume, fitted, seen):
    numbers = {"sample": "b", "plan": volume, "parameters": {"outdir": "o", "fit_channel": fitted}}
    found = stores(numbers)
    assert [path for path, _place in found] == seen
    page = "o/b" + "/channel_1" * bool(volume)
    assert [os.path.normpath(f"{page}/{path}") for path, _place in found] == [place for _path, place in found]


def test_masks_that_overlap_are_explained(tmp_path):
    said = {"stage": "TISSUE_MASK", "tissue_share": 0.452, "agarose_share": 0.584}
    _text, page, _numbers = report(tmp_path / "r.html", made(), stages=[said])
    assert "their shares (45.2% and 58.4%) add up to more than 100 %" in page.words()
    _text, page, _numbers = report(tmp_path / "r.html", made(), stages=[said | {"agarose_share": 0.5}])
    assert "add up to more" not in page.words()


def test_a_metric_is_one_entry(tmp_path, monkeypatch):
    """It is in metrics.json, in sections.tsv and on the page, with title, unit, rounding, help and limit."""
    of_volume = Metric(
        "toy.height_{time}",
        lambda m, time: {"before": 1.23456, "after": m.pair.shape[1]}[time],
        title="Toy height",
        unit="px",
        help="rows <b>of toys</b>",
        limit=Limit(39, above("{} rows are many")),
    )
    of_sections = Metric(
        "toy_share",
        lambda m: np.array([0.25, np.nan, 0.75]),
        title="toys",
        unit="of all",
        show=percent,
        help="toys are counted twice",
        limit=Limit(0.5, above("{:.0%} are toys")),
    )
    plain_text, _page, plain_numbers = report(tmp_path / "report.html", made())
    monkeypatch.setattr(table, "VOLUME_METRICS", (*table.VOLUME_METRICS, of_volume))
    monkeypatch.setattr(table, "SECTION_METRICS", (*table.SECTION_METRICS, of_sections))
    text, page, numbers = report(tmp_path / "report.html", made())
    assert "toy" not in plain_text + json.dumps(plain_numbers)
    assert numbers["toy"] == {"height_before": 1.23456, "height_after": 40}
    assert "40 rows are many" in numbers["reasons"]
    rows = [line.split("\t") for line in sections_table(numbers).splitlines()]
    assert [row[rows[0].index("toy_share")] for row in rows] == ["toy_share", "0.25", "", "0.75"]
    assert [row["reasons"] for row in numbers["sections"]][::2] == [[], ["75% are toys"]]
    assert "Toy height (px) 1.235 40 rows of toys" in page.words()
    assert "<b>of toys</b>" in text
    assert "that neighbouring planes do not prove; toys are counted twice." in page.words()
    assert "toys (of all)" in page.words()
    assert "75.0% warn 75% are toys" in page.words()


def test_tasks_of_a_stage_are_shown_together(tmp_path):
    _text, page, _numbers = report(tmp_path / "report.html", made())
    assert "SHRINK 2 3.8 s longest 2.5 s 2 shrink: 1; voxels exactly zero: 1000" in page.words()
    rows = grouped(STAGES, made()["recipe"], ESTIMATES)
    assert [row["name"] for row in rows] == ["SHRINK", "N4_VOLUME", "NORMALIZE"]
    assert rows[1]["backend"] == "itk"
    assert rows[1]["numbers"] == {"extra_numbers": [1, 2, 3]}  # its fields stand with the correction
    assert rows[2]["numbers"] == {"borrowed_planes": []}  # no such correction here, so they stand with the stage


def test_names_and_values_cannot_break_the_page(tmp_path):
    nasty = '<script>alert("x")</script> & "quotes" $x^2$'
    arrays = made()
    arrays["sections"] = SectionTable([Section(nasty, 0, 4), Section("b", 4, 9)], 9)
    parameters = {"outdir": nasty}
    text, page, _numbers = report(tmp_path / "report.html", arrays, sample=nasty, parameters=parameters)
    assert "<script>alert" not in text
    assert page.words().count('alert("x")') >= 4  # title, heading, parameter, section, axis of a plot


def test_equal_input_gives_equal_bytes(tmp_path):
    report(tmp_path / "a.html", made())
    report(tmp_path / "b.html", made())
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def lacking(name):
    arrays = made(recipe=[])
    volumes = [arrays["before"].mean, arrays["after"].mean]
    if name == "no tissue":
        arrays["tissue"] = None
    elif name == "no agarose":
        arrays["agarose"] = None
    elif name == "all NaN":
        volumes = [np.full(SHAPE, np.nan, np.float32)] * 2
    elif name == "section of NaN":
        for volume in volumes:
            volume[3:6] = np.nan
    elif name == "one plane":
        volumes = [volume[:1] for volume in volumes]
        arrays |= {"sections": SectionTable.equal(1, 1), "tissue": arrays["tissue"][:1]}
    elif name == "one section":
        arrays["sections"] = SectionTable.equal(SHAPE[0], 1)
    elif name == "all flagged":
        arrays["sections"] = SectionTable([Section("a", 0, SHAPE[0], "damaged")], SHAPE[0])
    elif name == "tissue lacks where a field was fitted":
        arrays |= {"recipe": made()["recipe"], "tissue": None}
    return arrays | dict(zip(("before", "after"), (shrink_planes(v, 1) for v in volumes), strict=True))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no tissue", "no tissue was found, so nothing could be measured"),
        ("no agarose", "no agarose was found, so the background level rests on no measurement"),
        ("all NaN", "There is nothing to show: no voxel of the volume is valid"),
        ("section of NaN", "100.0% of the voxels are not finite"),
        ("one plane", "The volume has one plane, so there is no cut across it."),
        ("one section", "no cut could be measured"),
        ("all flagged", "Before and after each have a window of their own"),
        ("no bias field", "No bias field is shown: the recipe has none."),
        ("tissue lacks where a field was fitted", "No bias field is shown: there is no tissue to measure it in."),
    ],
)
def test_what_is_lacking_is_said_in_words(tmp_path, name, sentence):
    arrays = lacking(name)
    _text, page, _numbers = report(tmp_path / "report.html", arrays, stages=[], parameters={}, voxel_um=None)
    words = page.words()
    assert sentence in words
    assert not re.search(r"\bnan\b|\bNone\b|Undefined|\binf\b", words.replace("None were recorded", ""))


def grey_pixels(panel):
    kind, data = panel.uri.split(";base64,")
    assert kind == "data:image/png"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_before_and_after_share_one_window_in_the_result_s_units():
    arrays = made()
    pair = Pair(**arrays)
    views = Views(pair, VOXEL_UM)
    window = windows(pair, views)
    assert window["before"] == window["after"]
    low, high = window["after"]
    z = views.centre[0]
    signal = np.mean(arrays["before"].mean[arrays["tissue"]]) - pair.units.level_before
    scale = (np.mean(arrays["after"].mean[arrays["tissue"]]) - pair.units.level_after) / signal
    for time, image in (("before", arrays["before"].mean[z]), ("after", arrays["after"].mean[z])):
        if time == "before":
            image = (image - pair.units.level_before) * scale + pair.units.level_after
        expected = np.clip((image - low) / (high - low), 0, 1) * 255
        shown_pixels = grey_pixels(views.grey(time, window[time])[0])
        valid = arrays["before"].valid[z] > 0
        assert np.abs(shown_pixels.astype(float) - expected)[valid].max() <= 0.51  # rounded to grey levels
    assert np.mean(pair.before(z)[arrays["tissue"][z]] > low) > 0.9


def test_planes_pass_through_tissue_and_cuts_stand_at_their_planes():
    arrays = made(flags=("ok", "missing", "ok"))
    views = Views(Pair(**arrays), VOXEL_UM)
    z, y, x = views.centre
    assert arrays["tissue"][z, y, x]
    assert arrays["sections"].usable_planes[z]
    xy, xz, yz = views.grey("after", (0, 1))
    per_plane = xz.height / SHAPE[0]
    assert xz.cuts == yz.cuts == pytest.approx((3 * per_plane, 6 * per_plane))
    assert xz.flagged[0] == pytest.approx((3 * per_plane, 3 * per_plane))
    assert xy.cuts == ()
    # proportions of the volume: 560 x 400 x 450 micrometres
    assert xy.width / xy.height == pytest.approx(560 / 400)
    assert xz.width / xz.height == pytest.approx(560 / 450)
    assert yz.width / yz.height == pytest.approx(400 / 450)
    assert xy.bar[1] == "100 µm"
    assert xy.bar[0] / xy.width == pytest.approx(100 / 560)
    assert xy.marks == pytest.approx(((x + 0.5) / SHAPE[2] * xy.width, (y + 0.5) / SHAPE[1] * xy.height))


def test_a_thin_stack_is_stretched_and_says_so(tmp_path):
    arrays = made()
    views = Views(Pair(**arrays), {"z": 1.0, "y": 10.0, "x": 10.0})
    assert views.stacked
    _xy, xz, _yz = views.grey("after", (0, 1))
    assert xz.height / xz.width == pytest.approx(views.z_stretch * 9 / 560)
    _text, page, _numbers = report(tmp_path / "r.html", arrays, voxel_um={"z": 1.0, "y": 10.0, "x": 10.0})
    assert f"Z is drawn {views.z_stretch:g} times as long as it is." in page.words()


def test_the_bias_field_is_drawn_from_its_values():
    arrays = made()
    field = arrays["recipe"][0].fields[0][2]
    views = Views(Pair(**arrays), VOXEL_UM)
    z, y, x = views.centre
    values = np.exp(field.log_field())
    assert views.images["xy"]["field"] == pytest.approx(values[z], rel=1e-6)
    assert views.images["xz"]["field"] == pytest.approx(values[:, y], rel=1e-6)
    assert views.images["yz"]["field"] == pytest.approx(values[:, :, x], rel=1e-6)


def test_an_outline_goes_around_the_pixels_of_a_mask():
    mask = np.zeros((20, 30), bool)
    mask[5:15, 10:24] = True
    path = outline(mask, 2.0, 3.0)
    corners = np.array([[float(v) for v in point.split(",")] for point in path.strip("MZ").split()])
    # the contour runs between pixel centres, and cuts corners by half a pixel
    assert corners.min(axis=0) == pytest.approx([20, 15])
    assert corners.max(axis=0) == pytest.approx([48, 45])
    assert outline(np.zeros((4, 4), bool), 1, 1) == ""
    assert outline(np.ones((4, 4), bool), 1, 1).startswith("M")


def test_large_pictures_are_averaged_down_and_small_ones_kept():
    ramp = np.tile(np.arange(200, dtype=np.uint8), (100, 10))
    kind, data = data_uri(ramp).split(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/jpeg"
    assert image.size == (500, 100)
    mean = np.asarray(image, float).mean()
    assert mean == pytest.approx(ramp.mean(), abs=1)  # JPEG keeps the mean within rounding
    small = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    kind, data = data_uri(small).split(";base64,")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), small)


def test_the_colour_scale_holds_the_field_and_is_never_narrow():
    assert field_limit({"p1": 0.5, "p99": 1.6}) == 2
    assert field_limit({"p1": 0.99, "p99": 1.01}) == 1.05


@pytest.mark.parametrize(("length", "nice"), [(730, 500), (0.4, 0.2), (1000, 1000), (199.9, 100)])
def test_scale_bars_have_round_lengths(length, nice):
    assert nice_length(length) == nice


def test_values_of_tasks_are_merged():
    assert merged("n_zero", [4, 4]) == 8
    assert merged("shrink", [4, 4]) == 4
    assert merged("thresholds", [[1, 2], [3]]) == [1, 2, 3]
    assert merged("minimum", [0.5, 0.25]) == "0.25 to 0.5"
    assert merged("mode", ["a", "b", "a"]) == "a, b"
    assert backends([{"fields": [{"backend": "cpu"}, {"backend": "cpu"}]}, {"backend": "itk"}]) == ["cpu", "itk"]
