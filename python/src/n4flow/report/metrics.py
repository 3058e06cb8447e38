"""The numbers of a report: what a recipe did to a volume, measured on the shrunken grid before and after.

`docs/report.md` gives the formula of every number. Two ideas carry all of them. Intensities are compared as *signal*,
that is value minus the agarose level, so that a number does not move because an offset was taken off. And both volumes
are measured on the same pixels: those that were valid in the input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from n4flow.compute.threads import run_tasks
from n4flow.n4_bias.otsu_mask import otsu_cut
from n4flow.report import kernels as qc_kernels
from n4flow.report.assessment import section_reasons, volume_reasons
from n4flow.report.pair import MIN_PIXELS, Pair, bias_fields, median, middle, weighted_mean
from n4flow.sections import SectionTable, filled_planes

if TYPE_CHECKING:
    from n4flow.corrections.base import Correction
    from n4flow.corrections.bias_field import BiasCorrection
    from n4flow.corrections.harmonization import Harmonization
    from n4flow.masks.packed_mask import PackedMask
    from n4flow.statistics.shrunken import Shrunken

TILE = 16  # pixels along a side within which classes count as neighbours
HOLE_SHARE = 0.25  # of tissue's median signal, below which a pixel counts as a hole
MIN_TILE_PIXELS = 8  # pixels of each class that a tile needs
TIMES = ("before", "after")


def metrics(
    *,
    sections: SectionTable,
    before: Shrunken,
    after: Shrunken,
    tissue: np.ndarray | PackedMask | None,
    agarose: np.ndarray | None,
    recipe: Sequence[Correction] = (),
) -> dict[str, Any]:
    """Measure what a recipe did to a volume.

    Parameters
    ----------
    sections : SectionTable
        Flagged sections are listed and enter no number of the whole volume.
    before, after : ShrunkenVolume or ShrunkenFiles
        The input and the result, shrunken in plane by the same factor; shape (Z, y, x).
    tissue : (Z, y, x) bool array, PackedMask or None
        Tissue on the shrunken grid.
    agarose : (y, x) bool array or None
        Agarose on the shrunken grid.
    recipe : sequence of Correction
        What was applied; its bias fields are measured.

    Returns
    -------
    dict
        JSON types only; a number that cannot be given is None, never NaN. See docs/report.md for each.
    """
    return pair_metrics(Pair(sections, before, after, tissue, agarose, recipe), recipe)


def pair_metrics(pair: Pair, recipe: Sequence[Correction]) -> dict[str, Any]:
    """Return what `metrics` does of a pair that exists already."""
    thresholds = class_thresholds(pair.sample(own_level=True)[2])
    changes, near, classes = _walk(pair, *thresholds)
    steps, jumps = _steps(pair, changes)
    contrast, kept = _contrast(pair, thresholds, near, classes)
    bias, ranges = _bias(pair, recipe)
    counts = _voxel_counts(pair)
    summary: dict[str, Any] = {
        "tissue": _tissue(pair),
        "agarose": _agarose(pair),
        "units": vars(pair.units),
        "steps": steps,
        "contrast": contrast,
        "bias_field": bias,
        "harmonization": _harmonization(recipe),
        "change": _change(pair, recipe),
        "voxels": {name: int(values.sum()) for name, values in counts.items()},
        "sections": _section_rows(pair, jumps, kept, ranges, counts, _reasons_not_fitted(recipe)),
        "planes": _plane_table(pair),
    }
    summary["reasons"] = volume_reasons(summary)
    warned = summary["reasons"] or any(row["status"] == "warn" for row in summary["sections"])
    summary["status"] = "warn" if warned else "pass"
    return plain(summary)


def plain(value: Any) -> Any:
    """Return JSON types: numbers of six significant digits, None for what is not finite."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else math.nan


def _tissue(pair: Pair) -> dict[str, Any]:
    """Share, mean and coefficient of variation of tissue, and the coefficient of variation of plane means."""
    usable, pixels = pair.sections.usable_planes, pair.planes["tissue_pixels"]
    filled = filled_planes(pair.voxels["n_valid"])
    every = (filled.stop - filled.start) * math.prod(pair.shape[1:])
    result: dict[str, Any] = {"share": pixels.sum() / every, "pixels": int(pixels.sum())}
    for time, level in zip(TIMES, pair.units.levels, strict=True):
        mean = weighted_mean(pair.planes[f"mean_{time}"], pixels * usable)
        squares = pair.planes[f"variance_{time}"] + (pair.planes[f"mean_{time}"] - mean) ** 2
        planes = pair.planes[f"mean_{time}"][usable & (pixels >= MIN_PIXELS)] - level
        result[f"mean_{time}"] = mean
        result[f"cv_{time}"] = _ratio(math.sqrt(weighted_mean(squares, pixels * usable)), mean - level)
        result[f"plane_mean_cv_{time}"] = _ratio(planes.std(), planes.mean()) if planes.size > 1 else math.nan
    return result


def _agarose(pair: Pair) -> dict[str, Any]:
    """Agarose level, and its spread over planes in units of the tissue's mean signal."""
    usable, pixels = pair.sections.usable_planes, pair.planes["tissue_pixels"]
    result: dict[str, Any] = {"planes": int(np.isfinite(pair.planes["agarose_before"]).sum())}
    for time, level in zip(TIMES, pair.units.levels, strict=True):
        values = pair.planes[f"agarose_{time}"][usable]
        values = values[np.isfinite(values)]
        signal = weighted_mean(pair.planes[f"mean_{time}"], pixels * usable) - level
        result[f"level_{time}"] = median(values)
        result[f"spread_{time}"] = _ratio(values.std(), signal) if values.size > 1 else math.nan
    return result


def _plane_table(pair: Pair) -> dict[str, Any]:
    """Return (Z,) numbers of each plane; those before are in the result's units."""
    scale, offset, table = pair.units.scale, pair.units.offset, pair.planes
    few = table["tissue_pixels"] < MIN_PIXELS
    return {
        "tissue_pixels": table["tissue_pixels"],
        "tissue_before": np.where(few, np.nan, table["mean_before"] * scale + offset),
        "tissue_after": np.where(few, np.nan, table["mean_after"]),
        "agarose_before": table["agarose_before"] * scale + offset,
        "agarose_after": table["agarose_after"],
    }


def _walk(pair: Pair, lowest: float, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Go through all planes once, for how brightness changes along Z and for the contrast between two classes.

    Returns
    -------
    changes : (2, Z - 1) array
        How brightness changes from each plane to the next, before and after: the median over pixels that are tissue in
        both planes of log(signal of plane z + 1 / signal of plane z); NaN with fewer than `MIN_PIXELS` pixels of
        positive signal.
    near : (3, sections) array
        Sums over the tiles of each section's planes of `_weighted_logs`.
    classes : (2, 3, sections) array
        Of the dark class, from `lowest`, and of the bright one, from `threshold`: pixels, and sums of the signal before
        and after.
    """
    owner, n_sections = pair.sections.section_of_plane, len(pair.sections)
    tiles = math.prod(-(-size // TILE) for size in pair.shape[1:])

    def measure(z: int) -> tuple[tuple[float, float], np.ndarray, np.ndarray]:
        inside, change = pair.tissue(z), (math.nan, math.nan)
        if z + 1 < pair.shape[0]:
            both = np.flatnonzero(inside & pair.tissue(z + 1))
            first, second = pair.signals(z, both), pair.signals(z + 1, both)
            positive = np.logical_and.reduce([signal > 0 for signal in (*first, *second)])
            if positive.sum() >= MIN_PIXELS:
                before, after = (middle(np.log(b[positive] / a[positive])) for a, b in zip(first, second, strict=True))
                change = before, after
        sums = np.zeros((2, 3, tiles))
        if not math.isnan(threshold):
            qc_kernels.class_sums(*pair.own_signals(z), inside, lowest, threshold, TILE, sums)
        return change, _weighted_logs(sums, MIN_TILE_PIXELS).sum(axis=1), sums.sum(axis=2)

    found = pair.over(measure)
    near, classes = np.zeros((3, n_sections)), np.zeros((2, 3, n_sections))
    for z, (_change, logs, sums) in enumerate(found):
        near[:, owner[z]] += logs
        classes[:, :, owner[z]] += sums
    return np.array([change for change, _logs, _sums in found[:-1]]).reshape(-1, 2).T, near, classes


def _steps(pair: Pair, changes: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Return the summary of steps at cuts, and (2, sections): the step at the top of each, before and after."""
    sections = pair.sections
    usable = sections.usable_planes
    ordinary = (np.diff(sections.section_of_plane) == 0) & usable[:-1] & usable[1:]
    jumps = np.full((2, len(sections)), np.nan)
    for number in range(1, len(sections)):
        around = np.zeros_like(ordinary)
        around[sections[number - 1].z_start : sections[number].z_stop - 1] = True
        cut = sections[number].z_start - 1
        for row in range(2):
            usual = [median(changes[row][ordinary & around]), median(changes[row][ordinary]), 0.0]
            jumps[row, number] = changes[row, cut] - next(value for value in usual if not math.isnan(value))
    fine = np.array([section.usable for section in sections])
    fine[1:] &= fine[:-1].copy()
    measured = np.flatnonzero(fine & np.isfinite(jumps).all(axis=0))
    summary: dict[str, Any] = {"cuts": len(sections) - 1, "measured": len(measured)}
    for row, time in enumerate(TIMES):
        sizes = np.abs(jumps[row, measured])
        inside = changes[row][ordinary]
        summary[f"median_{time}"] = median(sizes)
        summary[f"largest_{time}"] = sizes.max() if sizes.size else math.nan
        summary[f"largest_at_{time}"] = sections[int(measured[sizes.argmax()])].id if sizes.size else None
        summary[f"inside_sections_{time}"] = median(np.abs(inside - median(inside)))
    return summary, jumps


def class_thresholds(signal: np.ndarray) -> tuple[float, float]:
    """Return the signals that part tissue into two classes: dark from the first to the second, bright above.

    The first is a quarter of the median: what is darker is a hole, a ventricle or the mask's rim. The second is Otsu's
    threshold of the log of what lies above, the brightest half percent clipped. NaN where too few values are positive,
    or all are equal.
    """
    positive = signal[signal > 0].astype(np.float64)
    lowest = HOLE_SHARE * median(positive)
    logs = np.log(positive[positive > lowest])
    if logs.size < 2 * MIN_PIXELS or logs.min() == logs.max():
        return math.nan, math.nan
    counts, edges = np.histogram(np.minimum(logs, np.percentile(logs, 99.5)), 256)
    centres = (edges[:-1] + edges[1:]) / 2
    return lowest, float(np.exp(centres[otsu_cut(counts, centres)]))


def _contrast(
    pair: Pair, thresholds: tuple[float, float], near: np.ndarray, classes: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """Return the summary of contrast between two tissue classes, and (sections,): contrast kept nearby in each.

    Contrast between classes that lie side by side does not see shading, which changes slowly, so it shows what the maps
    of intensity did. Contrast over whole sections also moves when shading is removed or wide anatomy is flattened.
    """
    usable = np.array([section.usable for section in pair.sections])
    wide = _weighted_logs(classes, MIN_PIXELS)
    dark, bright = (classes[:, 0] * usable).sum(axis=1)
    summary: dict[str, Any] = {
        "threshold": thresholds[1] + pair.units.level_after,
        "bright_share": _ratio(bright, bright + dark),
    }
    for name, (weight, *logs) in (("", near), ("wide_", wide)):
        total = (weight * usable).sum()
        first, second = (_ratio((log * usable).sum(), total) for log in logs)
        summary |= {f"{name}before": first, f"{name}after": second, f"{name}kept": _ratio(second, first)}
    enough = (near[0] > 0) & (near[1] > 0)
    kept = np.divide(near[2], near[1], out=np.full(len(usable), np.nan), where=enough)
    known = np.flatnonzero(usable & enough)
    for name, place in (("least", np.argmin), ("most", np.argmax)):
        number = int(known[place(kept[known])]) if known.size else None
        summary[f"{name}_kept"] = None if number is None else kept[number]
        summary[f"{name}_kept_in"] = None if number is None else pair.sections[number].id
    return summary, kept


def _weighted_logs(sums: np.ndarray, fewest: int) -> np.ndarray:
    """Return (3, n): weight, and weight times log ratio of class means before and after.

    `sums` is (2, 3, n): of the dark and the bright class, pixels and sums of the signal before and after. All is 0
    where a class has fewer pixels than `fewest`.
    """
    usable = (sums[:, 0].min(axis=0) >= fewest) & (sums[:, 1:] > 0).all(axis=(0, 1))
    result = np.zeros(sums.shape[1:])
    dark, bright = sums[:, :, usable]
    result[0, usable] = dark[0] * bright[0] / (dark[0] + bright[0])
    result[1:, usable] = result[0, usable] * np.log((bright[1:] / bright[0]) / (dark[1:] / dark[0]))
    return result


def _bias(pair: Pair, recipe: Sequence[Correction]) -> tuple[dict[str, Any] | None, np.ndarray]:
    """Return percentiles of the bias field in tissue, and (3, sections): p1, p50, p99 of each section."""
    ranges = np.full((3, len(pair.sections)), np.nan)
    samples: list[list[np.ndarray]] = [[] for _section in pair.sections]
    for z_start, field in bias_fields(recipe, pair.shape):

        def pick(z: int, field: np.ndarray = field, z_start: int = z_start) -> np.ndarray:
            return field[z - z_start][pair.inside[z]][:: pair.stride].copy()  # a view would keep the whole plane

        planes = range(z_start, z_start + len(field))
        for z, values in zip(planes, run_tasks(pick, planes), strict=True):
            samples[pair.sections.section_of_plane[z]].append(values)
    joined = [np.concatenate(parts) if parts else np.zeros(0, np.float32) for parts in samples]
    for number, values in enumerate(joined):
        if values.size:
            ranges[:, number] = np.percentile(values, [1, 50, 99])
    whole = np.concatenate([values for number, values in enumerate(joined) if pair.sections[number].usable] or joined)
    if not whole.size:
        return None, ranges
    p1, p50, p99 = np.percentile(whole, [1, 50, 99])
    return {"p1": p1, "p50": p50, "p99": p99, "minimum": whole.min(), "maximum": whole.max()}, ranges


def _harmonization(recipe: Sequence[Correction]) -> dict[str, Any] | None:
    """Return what the harmonisation rests on, and the gain of every section with its uncertainty."""
    for step in recipe:
        if step.kind == "harmonization":
            fields = cast("Harmonization", step)
            return fields.summary() | {"gain": np.exp(fields.gain), "gain_sd": fields.gain_sd}
    return None


def _change(pair: Pair, recipe: Sequence[Correction]) -> dict[str, Any]:
    """Return how much tissue changed against itself (robust sd of log after / before), and what made sections alike."""
    _planes, first, second = pair.sample()
    both = (first > 0) & (second > 0)
    ratio = np.log(second[both].astype(np.float64) / first[both])
    spread = 1.4826 * median(np.abs(ratio - median(ratio))) if ratio.size >= MIN_PIXELS else math.nan
    alike = any(step.kind in ("section_lookup", "plane_gain") for step in recipe)
    return {"spread": spread, "sections_alike": alike}


def _reasons_not_fitted(recipe: Sequence[Correction]) -> list[tuple[int, int, str]]:
    """Return (z_start, z_stop, reason) of the bias fields that were not fitted."""
    fields = [part for step in recipe if step.kind == "bias_field" for part in cast("BiasCorrection", step).fields]
    return [(start, stop, str(field.reason)) for start, stop, field in fields if field.reason]


def _voxel_counts(pair: Pair) -> dict[str, np.ndarray]:
    """Return (sections,) counts of the input's voxels; those that are not valid enter no statistic."""
    first = [section.z_start for section in pair.sections]
    names = ("n_valid", "n_zero", "n_nonfinite", "n_negative", "n_saturated")
    return {name[2:]: np.add.reduceat(np.asarray(pair.voxels[name], np.int64), first) for name in names}


def _section_rows(
    pair: Pair,
    jumps: np.ndarray,
    kept: np.ndarray,
    ranges: np.ndarray,
    counts: dict[str, np.ndarray],
    not_fitted: list[tuple[int, int, str]],
) -> list[dict[str, Any]]:
    """Return one row per section: its numbers, and whether it passes or what to look at."""
    rows = []
    per_plane = pair.shape[1] * pair.shape[2]
    thickness = np.maximum(np.diff(pair.sections.edges(filled_planes(pair.voxels["n_valid"]))), 1)
    for number, section in enumerate(pair.sections):
        pixels = pair.planes["tissue_pixels"][section.planes]
        means = [weighted_mean(pair.planes[f"mean_{time}"][section.planes], pixels) for time in TIMES]
        total = max(1, sum(int(counts[name][number]) for name in ("valid", "zero", "nonfinite")))
        row: dict[str, Any] = {
            "id": section.id,
            "z_start": section.z_start,
            "z_stop": section.z_stop,
            "flag": section.flag,
            "tissue_share": pixels.sum() / (per_plane * thickness[number]),
            "mean_before": means[0] * pair.units.scale + pair.units.offset,
            "mean_after": means[1],
            "step_before": jumps[0, number],
            "step_after": jumps[1, number],
            "contrast_kept": kept[number],
            **dict(zip(("bias_p1", "bias_p50", "bias_p99"), ranges[:, number], strict=True)),
            **{f"{name}_share": counts[name][number] / total for name in ("nonfinite", "negative", "saturated")},
        }
        reasons = section_reasons(row, number > 0 and not pair.sections[number - 1].usable)
        for start, stop, why in not_fitted:
            if start < section.z_stop and stop > section.z_start:
                reasons.append(f"no bias field: {why}")
        rows.append(row | {"status": "warn" if reasons else "pass", "reasons": reasons})
    return rows


def sections_table(numbers: dict[str, Any]) -> str:
    """Return the per-section rows of `metrics` as tab-separated text with a header; what is not known is empty."""
    rows = numbers["sections"]
    lines = ["\t".join(rows[0])] if rows else []
    for row in rows:
        cells = ["; ".join(value) if isinstance(value, list) else value for value in row.values()]
        lines.append("\t".join("" if cell is None else str(cell) for cell in cells))
    return "".join(line + "\n" for line in lines)
