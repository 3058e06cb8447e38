"""Passes over a pair of volumes from which the metrics are computed, each made once, when a metric first needs it.

Intensities are compared as *signal*, that is value minus the agarose level, so that no number changes because an offset
was subtracted. Both volumes are measured on the same pixels: those that were valid in the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from n4flow.compute.threads import run_tasks
from n4flow.n4_bias.otsu_mask import otsu_cut
from n4flow.report.harm import contrast_kept, tile_products, unproven
from n4flow.report.pair import MIN_PIXELS, TIMES, Pair, log_bias_fields, median, middle, weighted_mean
from n4flow.sections import filled_planes

TILE = 16  # Side in pixels of a tile, within which pixels of two classes count as neighbours.
HOLE_SHARE = 0.25  # A pixel counts as a hole with less than this share of the median signal of tissue.
NOTHING = 1e-5  # A level counts as 0 below this share of the mean of tissue.
MIN_TILE_PIXELS = 8  # A tile with fewer pixels of either class is left out.


class Measurement:
    """The numbers of a pair, as functions that metrics call.

    A function with an argument `time` is called once with `before` and once with `after`. NaN or None stands for a
    number that is not known.

    Attributes
    ----------
    pair : Pair
    tissue_pixels : (Z,) int array
    usable : (Z,) bool array
        Planes of sections that are not flagged; only these enter a number of the whole volume.
    usable_sections : (sections,) bool array
    """

    def __init__(self, pair: Pair) -> None:
        self.pair, self.sections = pair, pair.sections
        self.tissue_pixels, self.usable = pair.planes["tissue_pixels"], pair.sections.usable_planes
        self.usable_sections = np.array([section.usable for section in pair.sections])
        self._level = dict(zip(TIMES, pair.units.levels, strict=True))
        self._filled = filled_planes(pair.voxels["n_valid"])

    # Tissue and agarose

    def tissue_share(self) -> float:
        """Return the share of the volume without its padding that is tissue."""
        planes = self._filled.stop - self._filled.start
        return float(self.tissue_pixels.sum() / (planes * math.prod(self.pair.shape[1:])))

    def tissue_mean(self, time: str) -> float:
        """Return the mean intensity of tissue in the units of that time."""
        return weighted_mean(self.pair.planes[f"mean_{time}"], self.tissue_pixels * self.usable)

    def _tissue_signal(self, time: str) -> float:
        return self.tissue_mean(time) - self._level[time]

    def tissue_variation(self, time: str) -> float:
        """Return the coefficient of variation of the signal of tissue."""
        table = self.pair.planes
        squares = table[f"variance_{time}"] + (table[f"mean_{time}"] - self.tissue_mean(time)) ** 2
        deviation = math.sqrt(weighted_mean(squares, self.tissue_pixels * self.usable))
        return ratio(deviation, self._tissue_signal(time))

    def plane_variation(self, time: str) -> float:
        """Return the coefficient of variation of the planes' mean signal of tissue."""
        chosen = self.usable & (self.tissue_pixels >= MIN_PIXELS)
        means = self.pair.planes[f"mean_{time}"][chosen] - self._level[time]
        return ratio(means.std(), means.mean()) if means.size > 1 else math.nan

    def _agarose(self, time: str) -> np.ndarray:
        values = self.pair.planes[f"agarose_{time}"][self.usable]
        return values[np.isfinite(values)]

    def agarose_level(self, time: str) -> float:
        """Return the median over planes of the agarose level, in the units of that time.

        Noise that was clipped at 0 leaves a trace in block means, which is no level.
        """
        level = median(self._agarose(time))
        return 0.0 if abs(level) < NOTHING * self.tissue_mean(time) else level

    def agarose_spread(self, time: str) -> float:
        """Return the standard deviation over planes of the agarose level, as a share of the mean signal of tissue."""
        values = self._agarose(time)
        return ratio(values.std(), self._tissue_signal(time)) if values.size > 1 else math.nan

    def plane_table(self) -> dict[str, Any]:
        """Return (Z,) numbers of each plane, which are plotted; those before are in the result's units."""
        scale, offset, table = self.pair.units.scale, self.pair.units.offset, self.pair.planes
        few = self.tissue_pixels < MIN_PIXELS
        return {
            "tissue_pixels": self.tissue_pixels,
            "tissue_before": np.where(few, np.nan, table["mean_before"] * scale + offset),
            "tissue_after": np.where(few, np.nan, table["mean_after"]),
            "agarose_before": table["agarose_before"] * scale + offset,
            "agarose_after": table["agarose_after"],
        }

    # One pass over all planes, for changes along Z and for contrast between two classes

    @cached_property
    def class_thresholds(self) -> tuple[float, float]:
        """Signals that separate tissue into two classes, see the function `class_thresholds`."""
        return class_thresholds(self.pair.sample(own_level=True)[2])

    @cached_property
    def _walk(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Go through all planes once.

        Four arrays are returned. (4, Z - 1): how brightness changes from each plane to the next, before and after, as
        the median over pixels that are tissue in both planes of log(signal of plane z + 1 / signal of plane z), and
        the median distance of pixels from that; NaN with fewer than `MIN_PIXELS` pixels of positive signal.
        (3, sections): sums of `_weighted_logs` over the tiles of each section's planes. (2, 3, sections), of the dark
        and of the bright class: pixels, and sums of the signal before and after. (3, sections): sums of
        `tile_products`.
        """
        from n4flow.report.kernels import class_sums

        pair, (lowest, threshold) = self.pair, self.class_thresholds
        owner, n_sections = self.sections.section_of_plane, len(self.sections)
        tiles = math.prod(-(-size // TILE) for size in pair.shape[1:])

        def measure(z: int) -> tuple[list[float], np.ndarray, np.ndarray, np.ndarray]:
            inside, change = pair.tissue(z), [math.nan] * 4
            if z + 1 < pair.shape[0]:
                both = np.flatnonzero(inside & pair.tissue(z + 1))
                first, second = pair.signals(z, both), pair.signals(z + 1, both)
                positive = np.logical_and.reduce([signal > 0 for signal in (*first, *second)])
                if positive.sum() >= MIN_PIXELS:
                    logs = [np.log(b[positive] / a[positive]) for a, b in zip(first, second, strict=True)]
                    change = [middle(log) for log in logs]
                    change += [middle(np.abs(log - m)) for log, m in zip(logs, change, strict=True)]
            sums, signals = np.zeros((2, 3, tiles)), pair.own_signals(z)
            if not math.isnan(threshold):
                class_sums(*signals, inside, lowest, threshold, TILE, sums)
            products = tile_products(*signals, inside)
            return change, _weighted_logs(sums, MIN_TILE_PIXELS).sum(axis=1), sums.sum(axis=2), products

        found = pair.over(measure)
        near, classes, local = np.zeros((3, n_sections)), np.zeros((2, 3, n_sections)), np.zeros((3, n_sections))
        for z, (_change, logs, sums, products) in enumerate(found):
            near[:, owner[z]] += logs
            classes[:, :, owner[z]] += sums
            local[:, owner[z]] += products
        return np.array([change for change, *_sums in found[:-1]]).reshape(-1, 4).T, near, classes, local

    # Steps at cuts between sections

    @cached_property
    def _ordinary(self) -> np.ndarray:
        """(Z - 1,) bool: changes between two usable planes of one section."""
        return (np.diff(self.sections.section_of_plane) == 0) & self.usable[:-1] & self.usable[1:]

    @cached_property
    def _steps(self) -> np.ndarray:
        """(2, sections): the step at each section's top, before and after: the change there minus the usual change."""
        changes, steps = self._walk[0], np.full((2, len(self.sections)), np.nan)
        for number in range(1, len(self.sections)):
            around = np.zeros_like(self._ordinary)
            around[self.sections[number - 1].z_start : self.sections[number].z_stop - 1] = True
            cut = self.sections[number].z_start - 1
            for row in range(2):
                usual = [median(changes[row][self._ordinary & near]) for near in (around, True)]
                steps[row, number] = changes[row, cut] - next(v for v in (*usual, 0.0) if not math.isnan(v))
        return steps

    @cached_property
    def measured_cuts(self) -> np.ndarray:
        """(n,) int: sections whose step from the section above was measured, both of them being usable."""
        fine = self.usable_sections.copy()
        fine[1:] &= self.usable_sections[:-1]
        return np.flatnonzero(fine & np.isfinite(self._steps).all(axis=0))

    def section_steps(self, time: str) -> np.ndarray:
        """Return (sections,) log ratio: the step from the section above, NaN for the first."""
        return self._steps[TIMES.index(time)]

    def _step_sizes(self, time: str) -> np.ndarray:
        return np.abs(self.section_steps(time)[self.measured_cuts])

    def median_step(self, time: str) -> float:
        """Return the median size of the steps."""
        return median(self._step_sizes(time))

    def largest_step(self, time: str) -> float:
        """Return the size of the largest step."""
        sizes = self._step_sizes(time)
        return float(sizes.max()) if sizes.size else math.nan

    def largest_step_at(self, time: str) -> str | None:
        """Return the id of the section at whose top the largest step is."""
        sizes = self._step_sizes(time)
        return self.sections[int(self.measured_cuts[sizes.argmax()])].id if sizes.size else None

    def change_inside_sections(self, time: str) -> float:
        """Return the median size of the changes from plane to plane inside sections, about their own median."""
        inside = self._walk[0][TIMES.index(time)][self._ordinary]
        return median(np.abs(inside - median(inside)))

    # Contrast between two classes of tissue

    def bright_share(self) -> float:
        """Return the share of the bright class in the pixels of both."""
        dark, bright = (self._walk[2][:, 0] * self.usable_sections).sum(axis=1)
        return ratio(bright, bright + dark)

    def contrast(self, time: str) -> float:
        """Return the contrast between classes that lie side by side.

        It shows what maps of intensity did, and not shading, which changes slowly.
        """
        return self._mean_log(self._walk[1], time)

    def wide_contrast(self, time: str) -> float:
        """Return the contrast over whole sections.

        It also changes if shading is removed or wide anatomy is flattened.
        """
        return self._mean_log(_weighted_logs(self._walk[2], MIN_PIXELS), time)

    def _mean_log(self, weighted_logs: np.ndarray, time: str) -> float:
        weight, *logs = (weighted_logs * self.usable_sections).sum(axis=1)
        return ratio(logs[TIMES.index(time)], weight)

    def kept(self, contrast: Callable[[str], float]) -> float:
        """Return the share of a contrast that is left."""
        return ratio(contrast("after"), contrast("before"))

    @cached_property
    def section_kept(self) -> np.ndarray:
        """(sections,): share of the contrast between neighbouring tissue that is left."""
        weight, before, after = self._walk[1]
        return np.divide(after, before, out=np.full(len(weight), np.nan), where=(weight > 0) & (before > 0))

    def extreme_kept(self, place: Callable[[np.ndarray], np.intp]) -> tuple[float | None, str | None]:
        """Return the share that is left in the section which `place` (argmin or argmax) finds, and its id."""
        known = np.flatnonzero(self.usable_sections & np.isfinite(self.section_kept))
        if not known.size:
            return None, None
        number = int(known[place(self.section_kept[known])])
        return float(self.section_kept[number]), self.sections[number].id

    # What the verdict rests on

    @cached_property
    def local_contrast(self) -> np.ndarray:
        """(sections,): what is left of the contrast between neighbouring pixels, see `report.harm`."""
        return contrast_kept(self._walk[3])

    @cached_property
    def worst_local_contrast(self) -> tuple[float, str | None]:
        """The number that is farthest from 1, and the id of its section."""
        return self._largest(self.local_contrast, np.abs(np.log(np.maximum(self.local_contrast, 1e-3))))

    def _largest(self, values: np.ndarray, size: np.ndarray) -> tuple[float, str | None]:
        """Return the (sections,) value whose size is largest over usable sections, and the id of its section."""
        known = np.flatnonzero(self.usable_sections & np.isfinite(values))
        if not known.size:
            return math.nan, None
        number = int(known[size[known].argmax()])
        return float(values[number]), self.sections[number].id

    def median_local_contrast(self) -> float:
        """Return the median over usable sections."""
        return median(self.local_contrast[self.usable_sections])

    def facing(self, time: str, *, cuts: bool) -> float:
        """Return how far pixels above each other in neighbouring planes differ (log), at cuts or inside sections.

        The median over pairs of planes of the median over pixels, about the change of the whole plane.
        """
        usable = self.usable[:-1] & self.usable[1:]
        return median(self._walk[0][2 + TIMES.index(time)][usable & (self._ordinary != cuts)])

    def section_facing(self, time: str) -> np.ndarray:
        """Return (sections,) the same at the cut from the section above, NaN for the first."""
        first = [section.z_start for section in self.sections][1:]
        return np.array([math.nan, *self._walk[0][2 + TIMES.index(time)][np.subtract(first, 1).astype(int)]])

    @cached_property
    def unproven(self) -> tuple[dict[str, float] | None, np.ndarray]:
        """See `harm.unproven`; None and NaN without evidence."""
        if self.pair.evidence is None:
            return None, np.full(len(self.sections), np.nan)
        return unproven(self.pair.evidence, self.pair.recipe)

    @cached_property
    def worst_unproven(self) -> tuple[float, str | None]:
        """The largest change of a section that is not proven, and the id of that section."""
        return self._largest(self.unproven[1], self.unproven[1])

    def applied(self) -> dict[str, float]:
        """Return by kind of correction the mean share of what was found that was applied; see `Correction.shares`."""
        kinds = dict.fromkeys(step.kind for step in self.pair.recipe)
        shares = {kind: self._shares(kind) for kind in kinds}
        return {kind: float(np.nanmean(found)) for kind, found in shares.items() if np.isfinite(found).any()}

    def _shares(self, kind: str) -> np.ndarray:
        """Return (Z,) the share of each plane for a kind of correction, the mean where there are several."""
        found = [step.shares(len(self.usable)) for step in self.pair.recipe if step.kind == kind]
        known = np.array([np.full(len(self.usable), np.nan), *(shares for shares in found if shares is not None)])
        counts = np.isfinite(known).sum(axis=0)
        return np.divide(np.nansum(known, axis=0), counts, out=np.full(len(counts), np.nan), where=counts > 0)

    def section_applied(self, kind: str) -> np.ndarray:
        """Return (sections,) the same for one kind."""
        share = self._shares(kind)
        return np.array([weighted_mean(share[s.planes], np.ones(s.z_stop - s.z_start)) for s in self.sections])

    # The bias field, and what else the recipe did

    @cached_property
    def bias(self) -> tuple[dict[str, float] | None, np.ndarray]:
        """Percentiles of the bias field in tissue, and (3, sections): p1, p50, p99 of each section."""
        pair, ranges = self.pair, np.full((3, len(self.sections)), np.nan)
        samples: list[list[np.ndarray]] = [[] for _section in self.sections]
        for z_start, field in log_bias_fields(pair.recipe, pair.shape):

            def pick(z: int, field: np.ndarray = field, z_start: int = z_start) -> np.ndarray:
                return np.asarray(np.exp(field[z - z_start][pair.inside[z]][:: pair.stride]))

            planes = range(z_start, z_start + len(field))
            for z, values in zip(planes, run_tasks(pick, planes), strict=True):
                samples[self.sections.section_of_plane[z]].append(values)
        joined = [np.concatenate(parts) if parts else np.zeros(0, np.float32) for parts in samples]
        for number, values in enumerate(joined):
            if values.size:
                ranges[:, number] = np.percentile(values, [1, 50, 99])
        usable = [values for values, chosen in zip(joined, self.usable_sections, strict=True) if chosen]
        whole = np.concatenate(usable or joined)
        if not whole.size:
            return None, ranges
        p1, p50, p99 = np.percentile(whole, [1, 50, 99])
        return {"p1": p1, "p50": p50, "p99": p99, "minimum": whole.min(), "maximum": whole.max()}, ranges

    def harmonization(self) -> dict[str, Any] | None:
        """Return what the harmonisation rests on, and the gain of every section with its uncertainty."""
        found = (step.summary() | gains for step in self.pair.recipe if (gains := step.section_gains()) is not None)
        return next(found, None)

    @cached_property
    def _changes(self) -> np.ndarray:
        """(n,) log(signal after / before) of tissue about its median; none with too few pixels."""
        _planes, first, second = self.pair.sample()
        both = (first > 0) & (second > 0)
        logs = np.log(second[both].astype(np.float64) / first[both])
        return np.asarray(logs - median(logs) if logs.size >= MIN_PIXELS else logs[:0])

    def change(self) -> float:
        """Return the robust standard deviation of log(signal after / before) in tissue."""
        return 1.4826 * median(np.abs(self._changes))

    def change_rms(self) -> float:
        """Return the rms of the same, to which a single section counts, too."""
        return float(np.sqrt(np.mean(self._changes**2))) if self._changes.size else math.nan

    # Sections

    @cached_property
    def voxels(self) -> dict[str, np.ndarray]:
        """(sections,) counts of the input's voxels by name; those that are not valid enter no statistic."""
        first = [section.z_start for section in self.sections]
        names = ("n_valid", "n_zero", "n_nonfinite", "n_negative", "n_saturated")
        return {name[2:]: np.add.reduceat(np.asarray(self.pair.voxels[name], np.int64), first) for name in names}

    def section_voxel_share(self, name: str) -> np.ndarray:
        """Return (sections,): share of the input's voxels of that name."""
        total = self.voxels["valid"] + self.voxels["zero"] + self.voxels["nonfinite"]
        return self.voxels[name] / np.maximum(total, 1)

    def section_tissue_share(self) -> np.ndarray:
        """Return (sections,): share of the section without its padding that is tissue."""
        planes = np.maximum(np.diff(self.sections.edges(self._filled)), 1)
        pixels = [self.tissue_pixels[section.planes].sum() for section in self.sections]
        return np.array(pixels) / (planes * math.prod(self.pair.shape[1:]))

    def section_mean(self, time: str) -> np.ndarray:
        """Return (sections,): mean of tissue in the result's units."""
        means = self.pair.planes[f"mean_{time}"]
        found = np.array([weighted_mean(means[s.planes], self.tissue_pixels[s.planes]) for s in self.sections])
        return found * self.pair.units.scale + self.pair.units.offset if time == "before" else found


def ratio(numerator: float, denominator: float) -> float:
    """Return a ratio, NaN where the denominator is not positive."""
    return float(numerator / denominator) if denominator > 0 else math.nan


def class_thresholds(signal: np.ndarray) -> tuple[float, float]:
    """Return the signals that separate tissue into two classes: dark from the first to the second, bright above.

    The first is a quarter of the median; darker pixels are holes, ventricles or the mask's rim. The second is Otsu's
    threshold of the log of all larger signals, of which the brightest half percent is clipped. Both are NaN if too few
    values are positive, or all are equal.
    """
    positive = signal[signal > 0].astype(np.float64)
    lowest = HOLE_SHARE * median(positive)
    logs = np.log(positive[positive > lowest])
    if logs.size < 2 * MIN_PIXELS or logs.min() == logs.max():
        return math.nan, math.nan
    counts, edges = np.histogram(np.minimum(logs, np.percentile(logs, 99.5)), 256)
    centres = (edges[:-1] + edges[1:]) / 2
    return lowest, float(np.exp(centres[otsu_cut(counts, centres)]))


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
