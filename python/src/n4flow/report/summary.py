"""A sample in a few numbers: the tiles of its report, its row in the index of a run, and the table for MultiQC."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from n4flow import __version__
from n4flow.report.page import render
from n4flow.report.text import change, percent, plain

SUMMARY_NAME = "summary.json"  # of a sample
INDEX_NAME = "index.html"  # of a run
MULTIQC_NAME = "n4flow_mqc.json"  # MultiQC finds its tables by this ending
FEWEST_SAMPLES = 5  # Among fewer, none is an outlier.
OUTLYING = 3.5  # How many robust standard deviations (1.4826 times the median distance) from the median an outlier is.


@dataclass(frozen=True)
class Key:
    """A number by which samples are compared.

    Parameters
    ----------
    name : str
        In `summary.json` and for MultiQC.
    title, help : str
    compute : function
        Takes the metrics of a sample; None stands for a number that is not known.
    show : function
        Formats it.
    percent : bool
        Whether it is a share, which MultiQC shows as percent.
    least : float
        A smaller distance from the median is nothing remarkable.
    """

    name: str
    title: str
    help: str
    compute: Callable[[Mapping[str, Any]], Any]
    show: Callable[[Any], str] = percent
    percent: bool = True
    least: float = 0.02


def steps_removed(metrics: Mapping[str, Any]) -> float | None:
    """Return the share of the median step between sections that is gone; negative where steps grew."""
    before, after = (metrics["steps"][f"median_{time}"] for time in ("before", "after"))
    return 1 - after / before if before else None


def _at(name: str) -> Callable[[Mapping[str, Any]], Any]:
    def compute(metrics: Mapping[str, Any]) -> Any:
        found: Any = metrics
        for key in name.split("."):
            found = None if found is None else found.get(key)
        return found

    return compute


def _to_look_at(metrics: Mapping[str, Any]) -> int:
    return sum(row["status"] == "warn" for row in metrics["sections"])


KEYS = (
    Key("contrast_kept", "Contrast kept", "median over sections of the contrast between neighbouring pixels, after "
        "over before", _at("contrast.local_median")),
    Key("contrast_worst", "Worst section", "the same of the section in which it is farthest from 100 %",
        _at("contrast.local_worst")),
    Key("step_before", "Step before", "median step of brightness between sections", _at("steps.median_before"), change),
    Key("step_after", "Step after", "the same in the result", _at("steps.median_after"), change),
    Key("steps_removed", "Steps removed", "share of the median step that is gone", steps_removed),
    Key("change", "Change", "rms of what changed in tissue", _at("change.rms")),
    Key("unproven", "Unproven", "rms of the change that neighbouring planes do not prove", _at("change.unproven.all")),
    Key("tissue", "Tissue", "share of the volume", _at("tissue.share")),
    Key("sections", "Sections", "number of sections", lambda m: len(m["sections"]), str, percent=False, least=1),
    Key("sections_to_look_at", "To look at", "sections with a warning", _to_look_at, str, percent=False, least=1),
)  # fmt: skip


def tiles(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return title, number and what stands below it, of the three numbers that a reader sees first."""
    contrast, steps, found = metrics["contrast"], metrics["steps"], metrics["change"]
    kept, removed = contrast["local_median"], steps_removed(metrics)
    worst = f"worst section {percent(contrast['local_worst'])} ({contrast['local_worst_in']})"
    below = f"median {change(steps['median_before'])} before, {change(steps['median_after'])} after; "
    usual = below + f"{change(steps['inside_sections_after'])} is usual from plane to plane"
    grew = removed is not None and removed < 0
    unproven = found["unproven"]
    return [
        ("Contrast kept, median section", percent(kept), worst if kept is not None else "too little tissue to measure"),
        (
            "Steps between sections grew by" if grew else "Steps between sections removed",
            "–" if removed is None else percent(abs(removed)),
            usual if removed is not None else "no cut between sections could be measured",
        ),
        (
            "Size of the change in tissue",
            percent(found["rms"]),
            "rms" + ("" if unproven is None else f"; {percent(unproven['all'])} not proven by neighbouring planes"),
        ),
    ]


def summarize(numbers: Mapping[str, Any], pictures: Mapping[str, str]) -> dict[str, Any]:
    """Return what the index of a run needs of a sample.

    Parameters
    ----------
    numbers : mapping
        What `metrics.json` holds.
    pictures : mapping
        Small pictures of the plane that the report shows, `before` and `after`, as data URIs.
    """
    return {
        "sample": numbers["sample"],
        "folder": numbers["sample"],
        "n4flow": __version__,
        "verdict": numbers["verdict"],
        "numbers": {key.name: plain(key.compute(numbers["metrics"])) for key in KEYS},
        "pictures": dict(pictures),
    }


def of_channels(
    sample: str, channels: Sequence[Mapping[str, Any]], summaries: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the summary of a sample of several channels: that of each, under a name of its own."""
    found = [
        {**one, "sample": f"{sample}, {channel['label']}", "folder": f"{sample}/{channel['folder']}"}
        for channel, one in zip(channels, summaries, strict=True)
    ]
    return {"sample": sample, "channels": found}


def outliers(values: Sequence[float | None], least: float) -> list[bool]:
    """Return which values lie far from the others: beyond `OUTLYING` robust standard deviations and `least`."""
    known = np.array([math.nan if value is None else value for value in values], float)
    if np.isfinite(known).sum() < FEWEST_SAMPLES:
        return [False] * len(values)
    away = np.abs(known - np.nanmedian(known))
    limit = max(OUTLYING * 1.4826 * float(np.nanmedian(away)), least)
    return [bool(far > limit) for far in away]


def index_page(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Return the index of a run, as HTML, from what `summarize` returned for each sample."""
    found = [outliers([one["numbers"][key.name] for one in summaries], key.least) for key in KEYS]
    rows = [
        {
            **one,
            "cells": [
                ("–" if (value := one["numbers"][key.name]) is None else key.show(value), value, far[number])
                for key, far in zip(KEYS, found, strict=True)
            ],
        }
        for number, one in enumerate(summaries)
    ]
    return render(
        "index.html.j2",
        keys=KEYS,
        rows=rows,
        look=sum(row["verdict"]["status"] == "look" for row in rows),
        outliers=any(map(any, found)),
    )


def multiqc_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of samples as custom content of MultiQC (https://docs.seqera.io/multiqc/custom_content)."""
    headers: dict[str, dict[str, Any]] = {
        "verdict": {
            "title": "Verdict",
            "description": "pass, or look: what to look at is said in the report",
            "cond_formatting_rules": {"pass": [{"s_eq": "pass"}], "warn": [{"s_eq": "look"}]},
        }
    }
    for key in KEYS:
        shown = {"suffix": " %", "format": "{:,.1f}"} if key.percent else {"format": "{:,.0f}"}
        headers[key.name] = {"title": key.title, "description": key.help, **shown}
    data = {}
    for one in summaries:
        row: dict[str, Any] = {"verdict": one["verdict"]["status"]}
        for key in KEYS:
            value = one["numbers"][key.name]
            if value is not None:
                shown_as = math.expm1(value) if key.show is change else value
                row[key.name] = plain(100 * shown_as if key.percent else value)
        data[one["sample"]] = row
    content = {
        "id": "n4flow",
        "section_name": "n4flow",
        "description": "Evenness of serial-section volumes before and after n4flow",
        "plot_type": "table",
        "pconfig": {"id": "n4flow_samples", "title": "n4flow: samples"},
        "headers": headers,
        "data": data,
    }
    return json.dumps(content, indent=2) + "\n"
