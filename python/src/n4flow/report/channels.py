"""The first page of a report on several channels: the verdict on each, and where its own page is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("n4flow.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    fitted = numbers["parameters"]["fit_channel"]
    names = {"mean": "the mean of all channels"} | {
        one["channel"]: f"channel {one['label']}" for one in numbers["channels"]
    }
    shared = f"All have the bias fields and the tissue mask of {names.get(fitted)}."
    fields = "Bias fields and tissue masks are of each channel." if fitted == "each" else shared
    page = environment.get_template("channels.html.j2").render(**numbers, fields=fields)
    path.write_text(page, encoding="utf-8")
