"""The page of the report: one self-contained HTML file per sample, with metrics, pictures, plots and all stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from n4flow.corrections.recipe import MASK_NAME
from n4flow.io.frame import Frame
from n4flow.report import plots, strip
from n4flow.report.assessment import headline
from n4flow.report.methods import methods
from n4flow.report.metrics import plain, section_columns, volume_rows
from n4flow.report.overview import Overview
from n4flow.report.page import render
from n4flow.report.pair import TIMES, Pair
from n4flow.report.pictures import Views, field_colours, field_limit, windows
from n4flow.report.summary import summarize, tiles
from n4flow.report.text import duration, number, percent
from n4flow.report.viewer import licences, viewer

if TYPE_CHECKING:
    from n4flow.corrections.base import Correction

# These numbers of a task are not listed with its stage: they have columns of their own or stand at the top of the page,
# or say only on which part of the volume the task worked.
NOT_LISTED = ("stage", "seconds", "backend", "threads", "warnings", "planes", "sections", "batch")
NEUROGLANCER = (
    'https://neuroglancer-demo.appspot.com/#!{"layers":[{"name":"after","type":"image","source":"zarr://STORE"}]}'
)
CONTENTS = (  # id and title of each part; those that a page lacks are left out
    ("look", "Look through it"),
    ("strip", "Sections at a glance"),
    ("numbers", "In numbers"),
    ("pictures", "Still pictures"),
    ("harmonisation", "Harmonisation"),
    ("plots", "Along the stack"),
    ("sections", "Sections"),
    ("stages", "Stages"),
    ("parameters", "Parameters"),
    ("open", "Open it"),
    ("methods", "Methods"),
)
MOST_NAMED = 8  # Sections named at the top.


def write_report(
    path: Path,
    numbers: Mapping[str, Any],
    pair: Pair,
    estimates: Mapping[str, str],
    *,
    command: str = "",
    megabytes: float = 0,
) -> dict[str, Any]:
    """Write the report of one sample.

    Parameters
    ----------
    path : path
        The HTML file.
    numbers : mapping
        What `metrics.json` holds: `sample`; `verdict`; `plan`, facts about the input, of which a missing one is not
        shown; `metrics` of the pair; `stages`, the numbers of each task; and `parameters`. Tasks of one stage are shown
        together, stages in the order of their first tasks.
    pair : Pair
        The input and the result.
    estimates : mapping
        The kind of correction that a stage estimates, by the stage's name. Numbers that are in the summary of such a
        correction are shown with the correction and not once more with the stage.
    command : str, optional
        The command that does the run again.
    megabytes : float, optional
        What the viewer may take of the page; there is none without it.

    Returns
    -------
    dict
        What the index of a run needs of the sample, see `summarize`.
    """
    volume, metrics, stages = numbers["plan"], numbers["metrics"], numbers["stages"]
    warned = [message for said in (volume, *stages) for message in said.get("warnings", ())]
    worst = strip.worst_first(metrics["sections"])
    overview = Overview(pair, volume.get("voxel_um"), megabytes, [strip.middle(row) for row in worst])
    views = Views(pair, volume.get("voxel_um"), overview)
    pictures = _pictures(pair, views, metrics)
    small = {} if pictures is None else {time: views.small(time, pictures["window"][time]) for time in TIMES}
    shown, volumes = (
        viewer(overview, views, pictures["window"], pictures.get("limit"), volume)
        if pictures is not None and overview.shown
        else (None, [])
    )
    lacking = {
        "look": shown is None,
        "strip": pictures is None or len(metrics["sections"]) < 2,
        "harmonisation": not metrics["harmonization"],
    }
    page = render(
        "report.html.j2",
        ["report.js", "viewer.js"],
        sample=numbers["sample"] + (f", channel {volume['label']}" if volume.get("label") else ""),
        verdict=numbers["verdict"],
        next=next_step(numbers["verdict"], metrics["sections"]),
        to_look_at=[row for row in worst if row["status"] == "warn"][:MOST_NAMED],
        more_to_look_at=_more(metrics["sections"]),
        headline=headline(pair.recipe, metrics),
        small=small | {"plane": views.centre[0]} if small else None,
        tiles=tiles(metrics),
        contents=[(name, title) for name, title in CONTENTS if not lacking.get(name)],
        facts=facts(volume, pair, stages, metrics),
        warnings=list(dict.fromkeys([*warned, *metrics["reasons"]])),
        metrics=metrics,
        viewer=shown,
        viewer_note=_viewer_note(overview, pair),
        volumes=volumes,
        licences=licences() if shown else "",
        strip=[] if pictures is None or lacking["strip"] else strip.pictured(worst, overview, pictures["window"]),
        volume_rows=volume_rows(metrics),
        section_columns=section_columns(metrics["sections"]),
        flagged=any(section.flag != "ok" for section in pair.sections),
        pictures=pictures,
        overlap=_overlap(stages),
        plots=_plots(pair, metrics),
        stages=grouped(stages, pair.recipe, estimates),
        corrections=[
            (f"not applied: {step.title}" if step.idle else step.title, plain(step.summary())) for step in pair.recipe
        ],
        parameters=numbers["parameters"],
        stores=stores(numbers),
        neuroglancer=NEUROGLANCER,
        command=command,
        methods=methods(numbers, pair.recipe),
        page_facts={
            "sections": [[row["id"], row["z_start"], row["z_stop"], row["status"]] for row in metrics["sections"]],
            "viewer": shown,
        },
    )
    path.write_text(page, encoding="utf-8")
    return summarize(numbers, small)


def stores(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return where result, mask and folder are, as seen from the page, and from where the run was started."""
    sample, volume, parameters = numbers["sample"], numbers["plan"], numbers["parameters"]
    several = volume.get("channel") is not None  # Then the page is of one of several channels, in a folder of its own.
    one_mask = several and (parameters.get("fit_channel") != "each" or volume.get("mask") == "given")
    folder = Path(parameters.get("outdir") or ".") / sample
    own = f"channel_{volume.get('channel')}/" if several and not one_mask else ""
    return [
        ("../" * several + f"{sample}.ome.zarr", str(folder / f"{sample}.ome.zarr")),
        ("../" * one_mask + MASK_NAME, str(folder / f"{own}{MASK_NAME}")),
        (".." if several else ".", str(folder)),
    ]


def next_step(verdict: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what a reader does next."""
    warned = any(row["status"] == "warn" for row in rows)
    if verdict["status"] == "look":
        first = "Compare before and after below, and try what the sentence names"
        return f"{first}. Sections with a warning:" if warned else f"{first}."
    first = "The result can be used." if verdict["changed"] else "There is nothing to do."
    return f"{first} Sections with a warning of their own:" if warned else first


def _more(rows: Sequence[Mapping[str, Any]]) -> str:
    more = sum(row["status"] == "warn" for row in rows) - MOST_NAMED
    return f" and {more} more" if more > 0 else ""


def _viewer_note(overview: Overview, pair: Pair) -> str:
    """Return how the volume in the viewer relates to the whole one."""
    side, step = overview.shrink * pair.shrink, overview.planes.step if overview.shown else 1
    pixels = f"A pixel is the mean of {side} × {side} voxels" if side > 1 else "A pixel is a voxel"
    planes = "all planes are there" if step == 1 else f"one plane in {step} is there"
    return f"{pixels}, in 8 bits; {planes}. Values are those of the grey levels."


def _overlap(stages: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence where the shares of tissue and agarose add up to more than the volume."""
    for stage in stages:
        tissue, agarose = stage.get("tissue_share"), stage.get("agarose_share")
        if tissue and agarose and tissue + agarose > 1:
            return (
                f"The masks overlap, so that their shares ({percent(tissue)} and {percent(agarose)}) add up to more "
                "than 100 %: agarose has one mask for all planes, from which each plane's tissue is taken off"
            )
    return ""


def facts(
    volume: Mapping[str, Any], pair: Pair, stages: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return (name, value) of each fact in the header."""
    found: list[tuple[str, str]] = []
    padded = ""
    if volume.get("shape"):
        whole = Frame.whole(volume["shape"])
        frame = Frame.read(volume["frame"], volume["shape"]) if volume.get("frame") else whole
        padded = f", padded around rows and columns {frame}" if frame != whole else ""
        found.append(("Shape (Z, Y, X)", " × ".join(str(size) for size in volume["shape"]) + " voxels" + padded))
    size = volume.get("voxel_um")
    if size:
        found.append(("Voxel size (Z, Y, X)", " × ".join(f"{size[axis]:g}" for axis in "zyx") + " µm"))
    kinds = [str(volume[name]) for name in ("dtype", "format") if volume.get(name)]
    if kinds:
        found.append(("Input", ", ".join(kinds)))
    if volume.get("output_dtype"):
        found.append(("Result", f"{volume['output_dtype']}, OME-Zarr"))
    flagged = sum(not section.usable for section in pair.sections)
    found.append(("Sections", f"{len(pair.sections)}" + (f", {flagged} flagged" if flagged else "")))
    share = metrics["tissue"]["share"] or 0
    tissue = f"{volume['mask']}, " if volume.get("mask") else ""
    tissue += f"{share:.1%} of the volume" + (" without its padding" if padded else "")
    if size and volume.get("shape"):
        cubic_mm = share * volume["shape"][0] * math.prod(frame.shape) * math.prod(size[axis] for axis in "zyx") / 1e9
        tissue += f", {number(cubic_mm, 3)} mm³" if cubic_mm < 1000 else f", {number(cubic_mm / 1000, 3)} cm³"
    found.append(("Tissue mask", tissue))
    found.append(("N4 backend", ", ".join(backends([step.summary() for step in pair.recipe])) or "none, no bias field"))
    seconds = [float(stage["seconds"]) for stage in stages if stage.get("seconds") is not None]
    if seconds:
        found.append(("Time", f"{duration(sum(seconds))}, all tasks added up"))
    return found


def backends(value: Any) -> list[str]:
    """Return every value named `backend` in nested mappings and lists, each once."""
    if isinstance(value, Mapping):
        named = [str(value["backend"])] if value.get("backend") else []
        return list(dict.fromkeys([*named, *backends(list(value.values()))]))
    if isinstance(value, (list, tuple)):
        return list(dict.fromkeys(name for item in value for name in backends(item)))
    return []


def grouped(
    stages: Sequence[Mapping[str, Any]], recipe: Sequence[Correction], estimates: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return one row per stage: tasks, seconds, backend, threads, and the numbers that are not shown elsewhere."""
    kinds: dict[str, set[str]] = {}
    for step in recipe:
        kinds.setdefault(step.kind, set()).update(step.summary())
    rows = []
    for name in dict.fromkeys(str(stage["stage"]) for stage in stages):
        tasks = [stage for stage in stages if stage["stage"] == name]
        seconds = [float(task["seconds"]) for task in tasks if task.get("seconds") is not None]
        hidden = {*NOT_LISTED, *kinds.get(estimates.get(name, ""), ())}
        numbers: dict[str, Any] = {}
        for key in dict.fromkeys(key for task in tasks for key in task if key not in hidden):
            numbers[key] = merged(key, [plain(task[key]) for task in tasks if key in task])
        rows.append(
            {
                "name": name,
                "tasks": len(tasks),
                "seconds": sum(seconds) if seconds else None,
                "longest": max(seconds) if len(seconds) > 1 else None,
                "backend": ", ".join(backends(tasks)),
                "threads": ", ".join(dict.fromkeys(str(task["threads"]) for task in tasks if task.get("threads"))),
                "numbers": numbers,
            }
        )
    return rows


def merged(key: str, values: Sequence[Any]) -> Any:
    """Return one value for all tasks of a stage: the sum of counts, the joined lists, the common value or the range."""
    if all(isinstance(value, int) for value in values) and (key.startswith("n_") or key.endswith("_voxels")):
        return sum(values)
    if all(value == values[0] for value in values):
        return values[0]
    if all(isinstance(value, list) for value in values):
        return [item for value in values for item in value]
    if all(isinstance(value, (int, float)) for value in values):
        return f"{number(min(values))} to {number(max(values))}"
    return ", ".join(dict.fromkeys(str(value) for value in values))


def _pictures(pair: Pair, views: Views, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the template draws, None if no pixel is valid."""
    if not any(image["valid"].any() for image in views.images.values()):
        return None
    window = windows(pair, views)
    found: dict[str, Any] = {
        "window": window,
        "common": pair.units.common,
        "rule": pair.units.rule,
        "stacked": views.stacked,
        "z_stretch": views.z_stretch,
        "planes": views.planes,
        "centre": dict(zip("zyx", views.centre, strict=True)),
        "before": views.grey("before", window["before"]),
        "after": views.grey("after", window["after"]),
        "masks": views.grey("after", window["after"], ("tissue", "agarose")),
    }
    if "background" in window:
        found["background_of"] = "the agarose level" if pair.units.from_agarose else "the level of what is not tissue"
        found["background"] = [(name, views.grey(name, window["background"])) for name in ("before", "after")]
    if not any(step.is_field for step in pair.recipe):
        found["no_field"] = "the recipe has none"
    elif not metrics["bias_field"]:
        found["no_field"] = "there is no tissue to measure it in"
    else:
        limit = field_limit(metrics["bias_field"])
        colours = [f"#{bytes(colour).hex()}" for colour in field_colours(np.linspace(0, 1, 17))]
        found |= {"field": views.coloured_field(limit), "limit": limit, "colours": colours}
    return found


def _plots(pair: Pair, metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (width class, SVG) of each plot that has something to show."""
    planes, rows, sections = metrics["planes"], metrics["sections"], pair.sections
    smoothing = [gains for step in pair.recipe if (gains := step.plane_gains()) is not None]
    found = []
    if any(value is not None for value in planes["tissue_after"]):
        found.append(("wide", plots.plane_means(planes, sections)))
    if any(value is not None for value in planes["agarose_before"]):
        found.append(("wide", plots.agarose_levels(planes, sections)))
    if metrics["steps"]["measured"]:
        found.append(("narrow", plots.steps(rows, metrics["steps"])))
    if metrics["tissue"]["pixels"]:
        gain = np.prod(smoothing, axis=0) if smoothing else None
        found.append(("narrow", plots.gains(planes, sections, pair.units.level_after, gain)))
    if metrics["harmonization"] and "reason" not in metrics["harmonization"]:
        found.append(("narrow", plots.section_gains(rows, metrics["harmonization"])))
    if metrics["bias_field"]:
        found.append(("narrow", plots.field_ranges(rows)))
    _planes, first, second = pair.sample()
    if second.size:
        top = max(float(np.percentile(first, 99.8)), float(np.percentile(second, 99.8)))
        if top > 0:
            level, threshold = pair.units.level_after, metrics["contrast"]["threshold"]
            found.append(("narrow", plots.histograms(first, second, level, threshold, level + top)))
    return found
