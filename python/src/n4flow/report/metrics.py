"""The metrics of the report: tables from which `metrics.json`, `sections.tsv` and the tables of the page are made.

A new metric is one entry: of `VOLUME_METRICS`, or of `SECTION_METRICS` for a number of each section.
`docs/report.md` gives the formula of every number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from html import escape
from io import StringIO
from itertools import groupby
from operator import getitem
from typing import Any

import numpy as np

from n4flow.report import assessment
from n4flow.report.assessment import Limit, above, many_voxels, moved
from n4flow.report.measurement import Measurement
from n4flow.report.pair import TIMES, Pair
from n4flow.report.text import change, number, percent, plain, signed_change, whole_percent
from n4flow.sections import write_rows


@dataclass(frozen=True)
class Metric:
    """A number of the report, or a pair of numbers before and after the correction.

    Parameters
    ----------
    name : str
        For a number of the volume, its place in `metrics.json`: `group.name`. For a number of each section, its column
        in `sections.tsv`. A name with `{time}` stands for two numbers: `{time}` becomes "before" and "after".
    compute : function
        Takes a `Measurement`; if the name has `{time}`, also "before" or "after". Returns the number, or an array with
        the number of each section. NaN or None stands for a number that is not known.
    title : str
        The title in the page's table. A metric without a title is not on the page.
    unit : str
        The unit, which the page shows behind the title.
    show : function
        Formats the number for the page: `number`, `percent`, `change` or another function of `n4flow.report.text`.
    help : str or function
        What the number says, as HTML without a full stop, or a function that returns it and takes all numbers of the
        volume. For sections it is a clause of the sentence above their table.
    cell : function, optional
        Takes all numbers of the volume or of the section and returns the text of the cell, for a cell that shows more
        than this number. A row whose cell is empty is left out of the table of the volume.
    limit : Limit, optional
        When the number deserves a look. If the name has `{time}`, it is the number after that is compared.
    row : int
        The table of the volume is sorted by it; metrics of equal `row` stay in the order of `VOLUME_METRICS`.
    """

    name: str
    compute: Callable[..., Any]
    title: str = ""
    unit: str = ""
    show: Callable[[Any], str] = number
    help: str | Callable[[Mapping[str, Any]], str] = ""
    cell: Callable[[Mapping[str, Any]], str] | None = None
    limit: Limit | None = None
    row: int = 0

    @property
    def titles(self) -> dict[str, str]:
        """The title of each number, by the number's name."""
        behind = f" ({self.unit})" if self.unit else ""
        times = TIMES if "{time}" in self.name else ("",)
        return {self.name.format(time=time): self.title.format(time=time) + behind for time in times}

    def cells(self, numbers: Mapping[str, Any]) -> list[str]:
        """Return the text of its cells."""
        if self.cell is not None:
            return [self.cell(numbers)]
        return [self.show(reduce(getitem, name.split("."), numbers)) for name in self.titles]


def _largest_steps(numbers: Mapping[str, Any]) -> str:
    steps = numbers["steps"]
    if not steps["measured"]:
        return "no cut could be measured"
    return f"at the top of {escape(steps['largest_at_before'])} before, of {escape(steps['largest_at_after'])} after"


def _contrast(numbers: Mapping[str, Any]) -> str:
    n = numbers["contrast"]
    text = "log ratio of two classes' mean signals where they lie side by side, which shading does not move"
    if n["kept"] is not None:
        more = "; above 100 %, the classes differ more than they did" if n["kept"] > 1.01 else ""
        text = f"<b>{percent(n['kept'])} kept</b>: {text}{more}"
    if n["bright_share"] is not None:
        text += f"; {whole_percent(n['bright_share'])} of tissue is the bright class"
    if len(numbers["sections"]) > 1 and n["least_kept"] is not None:
        least, most = (f"{whole_percent(n[f'{x}_kept'])} ({escape(n[f'{x}_kept_in'])})" for x in ("least", "most"))
        text += f"; in sections from {least} to {most}"
    return text


def _wide_contrast(numbers: Mapping[str, Any]) -> str:
    kept = numbers["contrast"]["wide_kept"]
    first = "" if kept is None else f"{percent(kept)} of before: "
    return first + "moves when shading is removed, and when wide anatomy is flattened"


def _local_contrast(numbers: Mapping[str, Any]) -> str:
    n = numbers["contrast"]
    if n["local_median"] is None:
        return ""
    return f"{percent(n['local_median'])} · {percent(n['local_worst'])} ({escape(n['local_worst_in'])})"


def _facing(numbers: Mapping[str, Any]) -> str:
    inside = (change(numbers["facing"][f"inside_{time}"]) for time in TIMES)
    return "how far pixels above each other differ across cuts; inside sections {} before, {} after".format(*inside)


def _applied(numbers: Mapping[str, Any]) -> str:
    return " · ".join(f"{kind.replace('_', ' ')} {whole_percent(share)}" for kind, share in numbers["applied"].items())


def _unproven(numbers: Mapping[str, Any]) -> str:
    found = numbers["change"]["unproven"]
    proof = "" if found is None else f"; of it, {percent(found['all'])} (rms) is not proven by neighbouring planes"
    return "robust standard deviation of log(signal after / before)" + proof


def _agarose(numbers: Mapping[str, Any]) -> str:
    planes = numbers["agarose"]["planes"]
    return f"median of {planes} planes, each in its own units" if planes else "no agarose was found"


def _bias_field(numbers: Mapping[str, Any]) -> str:
    field = numbers["bias_field"]
    return " · ".join(number(field[name]) for name in ("p1", "p50", "p99")) if field else ""


def _bias_extremes(numbers: Mapping[str, Any]) -> str:
    low, high = (number(numbers["bias_field"][name]) for name in ("minimum", "maximum"))
    return f"first percentile, median, last percentile; from {low} to {high}"


def _voxels(numbers: Mapping[str, Any]) -> str:
    zero, nonfinite, negative, saturated = (number(count) for count in list(numbers["voxels"].values())[1:])
    return f"{zero} exactly zero (padding), {nonfinite} not finite, {negative} negative, {saturated} saturated"


def _section_bias(row: Mapping[str, Any]) -> str:
    return "–" if row["bias_p1"] is None else f"{number(row['bias_p1'])} to {number(row['bias_p99'])}"


M = Measurement  # Its functions compute most metrics.
VOLUME_METRICS: tuple[Metric, ...] = (
    Metric("tissue.share", M.tissue_share),
    Metric("tissue.pixels", lambda m: int(m.tissue_pixels.sum()), limit=Limit(1, assessment.no_tissue, urgency=2)),
    Metric(
        "tissue.mean_{time}",
        M.tissue_mean,
        title="Mean of tissue",
        help="in the units of the input and of the result",
        row=2,
    ),
    Metric(
        "tissue.cv_{time}",
        M.tissue_variation,
        title="Variation of tissue",
        show=percent,
        help="standard deviation of tissue over its mean signal: shading, steps and anatomy together",
    ),
    Metric(
        "tissue.plane_mean_cv_{time}",
        M.plane_variation,
        title="Variation of plane means",
        show=percent,
        help="the same of the planes' means along Z",
    ),
    Metric(
        "agarose.planes",
        lambda m: int(np.isfinite(m.pair.planes["agarose_before"]).sum()),
        limit=Limit(1, assessment.no_agarose, urgency=2),
    ),
    Metric("agarose.level_{time}", M.agarose_level, title="Agarose level", help=_agarose, row=1),
    Metric(
        "agarose.spread_{time}",
        M.agarose_spread,
        title="Spread of the agarose level",
        show=percent,
        help="over planes, as a share of tissue's mean signal",
        row=1,
    ),
    Metric("units", lambda m: vars(m.pair.units)),
    Metric("steps.cuts", lambda m: len(m.sections) - 1),
    Metric("steps.measured", lambda m: len(m.measured_cuts)),
    Metric(
        "steps.median_{time}",
        M.median_step,
        title="Step between sections, median",
        show=change,
        help=lambda n: (
            f"{n['steps']['measured']} of {n['steps']['cuts']} cuts measured, "
            "against the change that is usual inside sections"
        ),
        limit=Limit(0.01, assessment.steps_grew, judges=True),
    ),
    Metric(
        "steps.largest_{time}", M.largest_step, title="Step between sections, largest", show=change, help=_largest_steps
    ),
    Metric("steps.largest_at_{time}", M.largest_step_at),
    Metric(
        "steps.inside_sections_{time}",
        M.change_inside_sections,
        title="Change from plane to plane",
        show=change,
        help="typical size inside sections: what a step that is no step looks like",
    ),
    Metric("contrast.threshold", lambda m: m.class_thresholds[1] + m.pair.units.level_after),
    Metric("contrast.bright_share", M.bright_share),
    Metric("contrast.{time}", M.contrast, title="Contrast of neighbouring tissue", help=_contrast),
    Metric(
        "contrast.kept",
        lambda m: m.kept(m.contrast),
        limit=Limit(0.05, moved("contrast between neighbouring tissue is {:.1%} of what it was"), urgency=1),
    ),
    Metric("contrast.wide_{time}", M.wide_contrast, title="Contrast over whole sections", help=_wide_contrast),
    Metric(
        "contrast.wide_kept",
        lambda m: m.kept(m.wide_contrast),
        limit=Limit(  # Wider than that of neighbours, as shading that was removed moves it, too.
            0.15,
            moved(
                "contrast over whole sections is {:.0%} of what it was: "
                "strong shading was removed, or anatomy flattened"
            ),
            urgency=1,
        ),
    ),
    Metric("contrast.least_kept", lambda m: m.extreme_kept(np.argmin)[0]),
    Metric("contrast.least_kept_in", lambda m: m.extreme_kept(np.argmin)[1]),
    Metric("contrast.most_kept", lambda m: m.extreme_kept(np.argmax)[0]),
    Metric("contrast.most_kept_in", lambda m: m.extreme_kept(np.argmax)[1]),
    Metric(
        "bias_field", lambda m: m.bias[0], title="Bias field in tissue", cell=_bias_field, help=_bias_extremes, row=3
    ),
    Metric("harmonization", M.harmonization),
    Metric(
        "contrast.local_median",
        M.median_local_contrast,
        title="Contrast kept, median and worst section",
        cell=_local_contrast,
        help="log signal after over before in tiles of 8 × 8 pixels, which fields and gains leave alone",
        limit=Limit(0.05, assessment.contrast_moved, judges=True, urgency=3),
    ),
    Metric("contrast.local_worst", lambda m: m.worst_local_contrast[0]),
    Metric("contrast.local_worst_in", lambda m: m.worst_local_contrast[1]),
    Metric(
        "facing.at_cuts_{time}",
        lambda m, time: m.facing(time, cuts=True),
        title="Facing pixels at cuts",
        show=change,
        help=_facing,
        limit=Limit(0.02, assessment.facing_differ, judges=True, urgency=3),
    ),
    Metric("facing.inside_{time}", lambda m, time: m.facing(time, cuts=False)),
    Metric(
        "applied",
        M.applied,
        title="Applied of what stages found",
        cell=_applied,
        help="what voxels above each other in neighbouring planes prove of it, with trust proven",
    ),
    Metric("change.spread", M.change, title="Change of tissue", show=change, help=_unproven),
    Metric("change.rms", M.change_rms),
    Metric("change.reason", lambda m: m.pair.evidence and m.pair.evidence.reason),
    Metric(
        "change.unproven",
        lambda m: m.unproven[0],
        limit=Limit(0.05, assessment.changed_unproven, judges=True, urgency=3),
    ),
    Metric("change.unproven_worst", lambda m: m.worst_unproven[0]),
    Metric("change.unproven_worst_in", lambda m: m.worst_unproven[1]),
    Metric(
        "voxels.valid",
        lambda m: int(m.voxels["valid"].sum()),
        title="Voxels of the input",
        cell=lambda n: f"{number(n['voxels']['valid'])} valid",
        help=_voxels,
        row=3,
    ),
    Metric("voxels.zero", lambda m: int(m.voxels["zero"].sum())),
    Metric(
        "voxels.nonfinite",
        lambda m: int(m.voxels["nonfinite"].sum()),
        limit=Limit(0, many_voxels("{} voxels of the input are not finite ({:.2%}); they are kept as they are")),
    ),
    Metric(
        "voxels.negative",
        lambda m: int(m.voxels["negative"].sum()),
        limit=Limit(0.05, many_voxels("{1:.1%} of the input's voxels are negative")),
    ),
    Metric(
        "voxels.saturated",
        lambda m: int(m.voxels["saturated"].sum()),
        limit=Limit(0.01, many_voxels("{1:.1%} of the input's voxels are saturated")),
    ),
)
SECTION_METRICS: tuple[Metric, ...] = (
    Metric(
        "tissue_share",
        M.section_tissue_share,
        title="tissue",
        show=percent,
        limit=Limit(0.005, assessment.little_tissue, of="all", urgency=3),
    ),
    Metric("mean_{time}", M.section_mean, title="mean {time}"),
    Metric(
        "step_{time}",
        M.section_steps,
        title="step {time}",
        show=signed_change,
        help="steps are against the section above",
        limit=Limit(0.05, assessment.step_left, of="cut"),
    ),
    Metric(
        "contrast_kept",
        lambda m: m.section_kept,
        title="contrast",
        show=whole_percent,
        help="contrast is what is left of the contrast between neighbouring tissue of two classes",
        limit=Limit(0.10, moved("contrast between neighbouring tissue is {:.0%} of what it was")),
    ),
    Metric(
        "bias_share",
        lambda m: m.section_applied("bias_field"),
        title="of field",
        show=whole_percent,
        help="of field and of match are the shares of the bias field and of the matched level that were applied",
    ),
    Metric("match_share", lambda m: m.section_applied("section_lookup"), title="of match", show=whole_percent),
    Metric("local_contrast_kept", lambda m: m.local_contrast),
    Metric("facing_{time}", M.section_facing),
    Metric(
        "unproven",
        lambda m: m.unproven[1],
        title="unproven",
        show=percent,
        help="unproven is the rms of the change that neighbouring planes do not prove",
    ),
    Metric("bias_p1", lambda m: m.bias[1][0], title="bias p1 to p99", cell=_section_bias),
    Metric("bias_p50", lambda m: m.bias[1][1]),
    Metric("bias_p99", lambda m: m.bias[1][2], limit=Limit(4.0, assessment.wide_field)),
    Metric(
        "nonfinite_share",
        lambda m: m.section_voxel_share("nonfinite"),
        limit=Limit(0.01, above("{:.1%} of the voxels are not finite"), of="all", urgency=3),
    ),
    Metric(
        "negative_share",
        lambda m: m.section_voxel_share("negative"),
        limit=Limit(0.05, above("{:.1%} of the input's voxels are negative"), of="all", urgency=1),
    ),
    Metric(
        "saturated_share",
        lambda m: m.section_voxel_share("saturated"),
        limit=Limit(0.01, above("{:.1%} of the input's voxels are saturated"), of="all", urgency=2),
    ),
)


def pair_metrics(pair: Pair) -> dict[str, Any]:
    """Measure what a recipe did to a volume.

    Returns
    -------
    dict
        What `metrics.json` has under `metrics`, and its `verdict`: JSON types only; a number that cannot be given is
        None, never NaN.
    """
    measurement = Measurement(pair)
    numbers: dict[str, Any] = {}
    for name, value in _measured(VOLUME_METRICS, measurement):
        *group, key = name.split(".")
        (numbers.setdefault(group[0], {}) if group else numbers)[key] = value
    numbers |= {"sections": _section_rows(measurement), "planes": measurement.plane_table()}
    limits = _limits(VOLUME_METRICS)
    numbers["verdict"] = assessment.verdict(limits, numbers, measurement.pair.recipe)
    numbers["reasons"] = assessment.reasons({n: limit for n, limit in limits.items() if not limit.judges}, numbers)
    return {name: plain(value) for name, value in numbers.items()}


def _measured(metrics: Iterable[Metric], measurement: Measurement) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of every number.

    Metrics of one group that follow each other and have a before and an after give all before, then all after.
    """
    for (_group, paired), run in groupby(metrics, lambda m: (m.name.partition(".")[0], "{time}" in m.name)):
        entries = list(run)
        for arguments in [(time,) for time in TIMES] if paired else [()]:
            for metric in entries:
                yield metric.name.format(time="".join(arguments)), metric.compute(measurement, *arguments)


def _limits(metrics: Iterable[Metric]) -> dict[str, Limit]:
    return {metric.name.format(time="after"): metric.limit for metric in metrics if metric.limit is not None}


def _section_rows(measurement: Measurement) -> list[dict[str, Any]]:
    """Return one row per section: its numbers, and whether it passes or what to look at."""
    columns, limits = dict(_measured(SECTION_METRICS, measurement)), _limits(SECTION_METRICS)
    unknown = [found for step in measurement.pair.recipe for found in step.not_estimated()]
    rows, above_flagged = [], False
    for index, section in enumerate(measurement.sections):
        row: dict[str, Any] = {"id": section.id, "z_start": section.z_start, "z_stop": section.z_stop}
        row |= {"flag": section.flag, **{name: column[index] for name, column in columns.items()}}
        reasons = assessment.section_reasons(limits, row, above_flagged)
        reasons += [why for start, stop, why in unknown if start < section.z_stop and stop > section.z_start]
        rows.append(row | {"status": "warn" if reasons else "pass", "reasons": reasons})
        above_flagged = not section.usable
    return rows


def sections_table(numbers: Mapping[str, Any]) -> str:
    """Return the rows of sections as tab-separated text with a header; what is not known is empty."""
    rows = numbers["sections"]
    table = [["; ".join(cell) if isinstance(cell, list) else cell for cell in row.values()] for row in rows]
    stream = StringIO()
    write_rows(stream, [*([rows[0]] if rows else []), *table])
    return stream.getvalue()


def volume_rows(numbers: Mapping[str, Any]) -> list[tuple[str, list[str], str]]:
    """Return the rows of the page's table of the volume: title, one cell or one before and one after, and help."""
    found = []
    for metric in sorted(VOLUME_METRICS, key=lambda metric: metric.row):
        cells = metric.cells(numbers) if metric.title else [""]
        if any(cells):
            words = metric.help(numbers) if callable(metric.help) else metric.help
            found.append((next(iter(metric.titles.values())), cells, words))
    return found


def section_columns(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[list[str]], str]:
    """Return the columns of the page's table of sections: titles, the cells of each row, and a sentence of help."""
    shown = [metric for metric in SECTION_METRICS if metric.title]
    titles = [title for metric in shown for title in metric.titles.values()]
    words = "; ".join(str(metric.help) for metric in shown if metric.help)
    cells = [[cell for metric in shown for cell in metric.cells(row)] for row in rows]
    return titles, cells, words[:1].upper() + words[1:] + "." if words else ""
