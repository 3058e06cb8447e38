"""Numbers, times, names and nested values as a reader sees them."""

import numpy as np
import pytest

from n4flow.report.text import change, duration, label, number, percent, shown, signed_change


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (True, "yes"),
        (3, "3"),
        (1234567, "1\u202f234\u202f567"),
        (10571.3, "10\u202f571"),
        (0.123456, "0.1235"),
        (0.000012345, "1.23e-05"),
        (0.0, "0"),
        ("itk", "itk"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_shares_changes_times_and_names_are_words():
    assert (percent(0.1234), percent(None), percent(0.5, 0)) == ("12.3%", "–", "50%")
    assert (change(np.log(1.1)), signed_change(np.log(1.1)), change(None)) == ("10.0%", "+10.0%", "–")
    assert [duration(s) for s in (None, 0.04, 12.3, 200, 7300)] == ["–", "0.04 s", "12 s", "3 min 20 s", "2 h 1 min"]
    assert (label("spline_um"), label("n_zero"), label("gain_min")) == (
        "knot spacing (µm)",
        "voxels exactly zero",
        "gain min",
    )


def test_long_lists_are_summarised():
    assert shown([1, 2, 3]) == {"text": "1, 2, 3"}
    assert shown([]) == {"text": "none"}
    assert shown(list(range(11))) == {"text": "0 to 10 (median 5)"}
    assert shown({"a": 1}) == {"items": [("a", 1)]}
    rows = [{"id": i, "backend": "cpu", "iterations": [50, i], "reason": None} for i in range(20)]
    table = shown(rows)
    assert table["columns"] == ["id", "iterations"]
    assert table["rows"] == [["0 to 19 (median 9.5)", "50, 0 to 19 (median 9.5)"]]
    assert (table["common"], table["of"]) == ({"backend": "cpu"}, 20)
    assert shown(rows[:1]) == {"items": [("id", 0), ("backend", "cpu"), ("iterations", [50, 0])]}
    assert shown(rows[:2])["rows"] == [["0", "50, 0"], ["1", "50, 1"]]
