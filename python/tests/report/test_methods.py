"""The paragraph for a paper: it says what was done, with numbers, and cites what CITATIONS.md has."""

import math
import re
from pathlib import Path

from page_examples import made

from n4flow.report.methods import WORKS, methods
from n4flow.report.metrics import pair_metrics
from n4flow.report.pair import Pair


def paragraph(recipe=None, **parameters):
    pair = Pair(**made(recipe=recipe))
    plan = {"shape": [9, 40, 56], "voxel_um": {"z": 50.0, "y": 10.0, "x": 10.0}}
    numbers = {"plan": plan, "metrics": pair_metrics(pair), "parameters": parameters}
    return (*methods(numbers, pair.recipe), numbers["metrics"])


def test_it_says_what_was_done_and_what_came_of_it():
    text, works, metrics = paragraph(bias="two_pass", spline_um=3000.0, smooth_z=2.0, ome_zarr_version="0.5")
    assert "a volume of 9 × 40 × 56 voxels of 50 × 10 × 10 µm (Z, Y, X) in 3 sections" in text
    assert "A bias field of each section, and then of the whole volume, was estimated with N4 [2]" in text
    assert "(B-spline knots every 3000 µm)" in text
    assert "smoothed along Z by a gain of each plane (Gaussian, sigma 2 planes)" in text
    before, after = (math.expm1(metrics["steps"][f"median_{time}"]) for time in ("before", "after"))
    assert f"the median step of brightness between sections was {before:.1%} before and {after:.1%} after" in text
    assert text.endswith("The result was stored as OME-Zarr 0.5 [3].")
    assert works == [WORKS[name] for name in ("n4flow", "n4", "ome-zarr")]
    assert sorted(map(int, re.findall(r"\[(\d+)\]", text))) == [1, 2, 3]


def test_what_was_not_done_is_not_said():
    text, works, _metrics = paragraph(recipe=[])
    assert "Nothing was changed." in text
    assert "N4 [" not in text
    assert works == [WORKS[name] for name in ("n4flow", "ome-zarr")]


def test_works_are_those_of_the_citations():
    known = " ".join(Path(__file__).parents[3].joinpath("CITATIONS.md").read_text().replace("*", "").split())
    for name, work in WORKS.items():
        if name != "n4flow":
            assert work in known
