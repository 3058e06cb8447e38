"""The report: one html file per sample, self-contained and offline, with pictures, plots and every stage's numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from n4flow import __version__
from n4flow.io.frame import Frame
from n4flow.report import plots
from n4flow.report.assessment import headline
from n4flow.report.metrics import plain
from n4flow.report.pair import Pair
from n4flow.report.pictures import FIELD_COLOURS, Views, field_limit, windows
from n4flow.sections import SectionTable

if TYPE_CHECKING:
    from n4flow.corrections.base import Correction

# Which correction a stage estimates: its numbers are shown once, with the correction.
STAGE_KINDS = {
    "N4_SECTIONS": "bias_field",
    "N4_VOLUME": "bias_field",
    "HARMONIZE": "harmonization",
    "NORMALIZE": "plane_range",
    "MATCH_HISTOGRAMS": "section_lookup",
    "SMOOTH_Z": "plane_gain",
}
HEADINGS = ("stage", "seconds", "backend", "threads", "warnings")  # shown in columns of their own, or at the top
PLACE = ("planes", "sections", "batch")  # where a scattered task worked
LABELS = {
    "n_valid": "voxels valid",
    "n_zero": "voxels exactly zero",
    "n_nonfinite": "voxels not finite",
    "n_negative": "voxels negative",
    "n_saturated": "voxels saturated",
    "spline_um": "knot spacing (µm)",
    "knot_um": "final knot spacing (µm)",
    "z_start": "first plane",
    "z_stop": "end plane",
}
LONGEST_LIST = 8  # numbers that are listed; more are summarised
LONGEST_TABLE = 12  # rows of numbers that are listed


def write_report(
    path: str | Path,
    *,
    sample: str,
    volume: Mapping[str, Any],
    pair: Pair,
    recipe: Sequence[Correction],
    stages: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, Any],
    metrics: Mapping[str, Any],
    warnings: Sequence[str] = (),
) -> None:
    """Write the report of one sample.

    Parameters
    ----------
    path : path
        The html file; replaced in one piece when it exists.
    sample : str
    volume : mapping
        Facts about the input, as `Plan.summary()` gives them: shape, dtype, voxel_um, format, mask, output_dtype. What
        is not there is not shown.
    pair : Pair
        The input and the result.
    recipe : sequence of Correction
        In the order in which it was applied.
    stages : sequence of mapping
        One for each task: `stage`, `seconds`, and any other numbers. Tasks of one stage are shown together.
    parameters : mapping
        Resolved parameters.
    metrics : mapping
        What `qc.pair_metrics` returned for the same pair.
    warnings : sequence of str
        Sentences to show at the top.
    """
    from jinja2 import Environment, PackageLoader

    sections = pair.sections
    environment = Environment(
        loader=PackageLoader("n4flow.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        label=label, number=number, percent=percent, change=change, duration=duration, shown=shown
    )
    text = environment.get_template("report.html.j2").render(
        sample=sample,
        version=__version__,
        headline=headline(recipe, metrics),
        facts=facts(volume, sections, stages, recipe, metrics),
        warnings=[*warnings, *(reason for reason in metrics["reasons"] if reason not in warnings)],
        metrics=metrics,
        flagged=[row for row in metrics["sections"] if row["status"] == "warn"],
        pictures=_pictures(pair, recipe, volume, metrics),
        plots=_plots(pair, sections, recipe, metrics),
        stages=grouped(stages, recipe),
        corrections=[(step.title, plain(step.summary())) for step in recipe],
        parameters=parameters,
    )
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def facts(
    volume: Mapping[str, Any],
    sections: SectionTable,
    stages: Sequence[Mapping[str, Any]],
    recipe: Sequence[Correction],
    metrics: Mapping[str, Any],
) -> list[tuple[str, str]]:
    """Return what the header says, as (name, value)."""
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
    flagged = sum(not section.usable for section in sections)
    found.append(("Sections", f"{len(sections)}" + (f", {flagged} flagged" if flagged else "")))
    share = metrics["tissue"]["share"] or 0
    tissue = f"{volume['mask']}, " if volume.get("mask") else ""
    tissue += f"{share:.1%} of the volume" + (" without its padding" if padded else "")
    if size and volume.get("shape"):
        cubic_mm = share * volume["shape"][0] * math.prod(frame.shape) * math.prod(size[axis] for axis in "zyx") / 1e9
        tissue += f", {number(cubic_mm, 3)} mm³" if cubic_mm < 1000 else f", {number(cubic_mm / 1000, 3)} cm³"
    found.append(("Tissue mask", tissue))
    found.append(("N4 backend", ", ".join(backends([step.summary() for step in recipe])) or "none, no bias field"))
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


def grouped(stages: Sequence[Mapping[str, Any]], recipe: Sequence[Correction]) -> list[dict[str, Any]]:
    """Return one row per stage: tasks, seconds, backend, threads, and the numbers that no correction shows."""
    kinds: dict[str, set[str]] = {}
    for step in recipe:
        kinds.setdefault(step.kind, set()).update(step.summary())
    rows = []
    for name in dict.fromkeys(str(stage["stage"]) for stage in stages):
        tasks = [stage for stage in stages if stage["stage"] == name]
        seconds = [float(task["seconds"]) for task in tasks if task.get("seconds") is not None]
        hidden = {*HEADINGS, *PLACE, *kinds.get(STAGE_KINDS.get(name, ""), ())}
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
    """Return one value for the tasks of a stage: voxel counts added, lists joined, the common value, or the range."""
    if all(isinstance(value, int) for value in values) and (key.startswith("n_") or key.endswith("_voxels")):
        return sum(values)
    if all(value == values[0] for value in values):
        return values[0]
    if all(isinstance(value, list) for value in values):
        return [item for value in values for item in value]
    if all(isinstance(value, (int, float)) for value in values):
        return f"{number(min(values))} to {number(max(values))}"
    return ", ".join(dict.fromkeys(str(value) for value in values))


def _pictures(
    pair: Pair, recipe: Sequence[Correction], volume: Mapping[str, Any], metrics: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return what the template draws, None where no pixel holds anything."""
    views = Views(pair, recipe, volume.get("voxel_um"))
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
    if not any(step.is_field for step in recipe):
        found["no_field"] = "the recipe has none"
    elif not metrics["bias_field"]:
        found["no_field"] = "there is no tissue to measure it in"
    else:
        limit = field_limit(metrics["bias_field"])
        found |= {"field": views.coloured_field(limit), "limit": limit, "colours": _colours()}
    return found


def _colours() -> list[str]:
    """Return the colours of the bias field's scale at even distances, as hex."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps[FIELD_COLOURS](np.linspace(0, 1, 17))]


def _plots(
    pair: Pair, sections: SectionTable, recipe: Sequence[Correction], metrics: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return (width class, SVG) of each plot that has something to show."""
    planes, rows = metrics["planes"], metrics["sections"]
    smoothing = [gains for step in recipe if (gains := step.plane_gains()) is not None]
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


def label(key: str) -> str:
    """Return the name of a number in words.

    >>> label("agarose_level_min"), label("spline_um"), label("n_zero")
    ('agarose level min', 'knot spacing (µm)', 'voxels exactly zero')
    """
    return LABELS.get(key, key.replace("_um", " (µm)").replace("_", " "))


def number(value: Any, digits: int = 4) -> str:
    """Return a number as a reader wants it: a few digits, an en dash for what is not known."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)):
        return str(value)
    if not math.isfinite(value):
        return "–"
    if isinstance(value, int) or 1e4 <= abs(value) < 1e9:
        return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 1e4 else str(value)
    return f"{value:.{digits if abs(value) >= 1e-3 else min(digits, 3)}g}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as percent, an en dash for None."""
    return "–" if value is None else f"{value:.{digits}%}"


def change(log_ratio: float | None, sign: bool = False) -> str:
    """Return a log ratio as a change in percent, an en dash for None."""
    return "–" if log_ratio is None else f"{math.expm1(log_ratio):{'+' if sign else ''}.1%}"


def duration(seconds: float | None) -> str:
    """Return a time in words.

    >>> duration(0.04), duration(12.3), duration(200), duration(7300)
    ('0.04 s', '12 s', '3 min 20 s', '2 h 1 min')
    """
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def shown(value: Any) -> dict[str, Any]:
    """Return how the template shows a value: as `text`, as a table of `columns`, or as named `items`."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
        return _table(value)
    if isinstance(value, Mapping):
        return {"items": list(value.items())}
    if isinstance(value, (list, tuple)):
        return {"text": _summary(value) if len(value) > LONGEST_LIST else _cell(value)}
    return {"text": number(value)}


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return columns and rows of text, with what all rows have in common apart; many rows become one of ranges."""
    if len(rows) == 1:
        return {"items": [(key, value) for key, value in rows[0].items() if value is not None]}
    columns = {key: [row.get(key) for row in rows] for row in rows for key in row}
    known = {key: values for key, values in columns.items() if any(value is not None for value in values)}
    common = {key: _cell(values[0]) for key, values in known.items() if values.count(values[0]) == len(values)}
    varying = {key: values for key, values in known.items() if key not in common}
    if len(rows) > LONGEST_TABLE:
        cells = [[_summary(values) for values in varying.values()]]
    else:
        cells = [[_cell(value) for value in line] for line in zip(*varying.values(), strict=True)]
    return {"columns": list(varying), "rows": cells, "common": common, "of": len(rows)}


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(item) for item in value) or "none"
    return number(value)


def _summary(values: Sequence[Any]) -> str:
    """Return many values in a few words: minimum, median and maximum of numbers, or how often each text occurs."""
    if all(isinstance(value, (list, tuple)) for value in values) and len({len(value) for value in values}) == 1:
        return ", ".join(_summary(column) for column in zip(*values, strict=True))
    known = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if known and len(known) + sum(value is None for value in values) == len(values):
        low, middle, high = (number(float(q)) for q in np.percentile(known, [0, 50, 100]))
        return low if low == high else f"{low} to {high} (median {middle})"
    texts = [_cell(value) for value in values]
    counts = {text: texts.count(text) for text in dict.fromkeys(texts)}
    if len(counts) > LONGEST_LIST:
        return f"{len(values)} values"
    return "; ".join(f"{text} ({count}×)" for text, count in counts.items()) if len(counts) > 1 else texts[0]
