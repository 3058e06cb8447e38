"""The first page of a report on several channels: the verdict on each, and where its own page is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from n4flow.report.page import render


def write_overview(path: Path, numbers: Mapping[str, Any]) -> None:
    """Write the page.

    Parameters
    ----------
    path : path
        The HTML file; the pages of the channels are `report.html` in their folders beside it.
    numbers : mapping
        What `metrics.json` of several channels holds: `sample`, `n4flow`, `verdict`, `parameters`, and `channels`, each
        with `channel`, `label`, `folder` and `verdict`.
    """
    fitted = numbers["parameters"]["fit_channel"]
    names = {"mean": "the mean of all channels"} | {
        one["channel"]: f"channel {one['label']}" for one in numbers["channels"]
    }
    shared = f"All have the bias fields and the tissue mask of {names.get(fitted)}."
    fields = "Bias fields and tissue masks are of each channel." if fitted == "each" else shared
    path.write_text(render("channels.html.j2", **numbers, fields=fields), encoding="utf-8")
