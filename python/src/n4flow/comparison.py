"""A volume before and after its recipe, on the same pixels and in the same units: the base of numbers and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np

from n4flow.sections import SectionTable

if TYPE_CHECKING:
    from n4flow.bias import BiasCorrection
    from n4flow.correction import Correction
    from n4flow.harmonization import Harmonization
    from n4flow.statistics import ShrunkenVolume

MIN_VALID = 0.5  # share of a block's voxels that must be valid for the block to count
MIN_PIXELS = 20  # pixels below which a plane, a pair of planes or a class gives no number
RUN_PLANES = 64  # planes of a bias field that are evaluated at once
MAX_SAMPLE = 1 << 22  # tissue pixels from which percentiles and the class threshold are taken


@dataclass(frozen=True)
class Units:
    """How the input's intensities relate to the result's: by one linear map for the whole volume.

    Parameters
    ----------
    level_before, level_after : float
        Agarose level in the input's and in the result's units, 0 where there is none; signal is value minus level.
    scale, offset : float
        `scale * before + offset` has the result's agarose level and mean of tissue.
    rule : str
        How the input is brought to the result's units, in words.
    common : bool
        Whether it could be brought there at all.
    from_agarose : bool
        Whether the levels were measured; otherwise they are 0.
    """

    level_before: float
    level_after: float
    scale: float
    offset: float
    rule: str
    common: bool = True
    from_agarose: bool = False

    @property
    def levels(self) -> tuple[float, float]:
        """Agarose level before and after."""
        return self.level_before, self.level_after


class Pair:
    """A volume before and after, plane by plane, on the same pixels.

    Parameters
    ----------
    sections : SectionTable
    before, after : ShrunkenVolume
        Of shape (Z, y, x), shrunken by the same factor.
    tissue : (Z, y, x) bool array or None
    agarose : (y, x) bool array or None
    recipe : sequence of Correction
        What was applied between the two.
    """

    def __init__(
        self,
        sections: SectionTable,
        before: ShrunkenVolume,
        after: ShrunkenVolume,
        tissue: np.ndarray | None,
        agarose: np.ndarray | None,
        recipe: Sequence[Correction] = (),
    ) -> None:
        self.sections = sections
        self.shape: tuple[int, int, int] = before.mean.shape
        self._before, self._after = before, after
        self._tissue = np.zeros(self.shape, bool) if tissue is None else np.asarray(tissue, bool)
        self._agarose = np.zeros(self.shape[1:], bool) if agarose is None else np.asarray(agarose, bool)
        self.planes = self._measure()
        zero_based = any(correction.kind == "plane_range" for correction in recipe)
        self.units = self._units(zero_based)
        self._levels = self._plane_levels(zero_based)

    def valid(self, z: int) -> np.ndarray:
        """(y, x) bool: pixels of which at least half the voxels were valid in the input."""
        finite = np.isfinite(self._before.mean[z]) & np.isfinite(self._after.mean[z])
        return finite & (self._before.valid[z] >= MIN_VALID)

    def tissue(self, z: int) -> np.ndarray:
        """(y, x) bool: valid pixels in the tissue mask."""
        return self._tissue[z] & self.valid(z)

    def agarose(self, z: int) -> np.ndarray:
        """(y, x) bool: valid pixels in the agarose mask and outside tissue."""
        return self._agarose & ~self._tissue[z] & self.valid(z)

    def input(self, z: int) -> np.ndarray:
        """(y, x) float32: the input, in its own units."""
        return self._before.mean[z]

    def before(self, z: int) -> np.ndarray:
        """(y, x) float32: the input in the result's units."""
        return self._before.mean[z] * np.float32(self.units.scale) + np.float32(self.units.offset)

    def after(self, z: int) -> np.ndarray:
        """(y, x) float32: the result's mean over the voxels that were valid in the input.

        A voxel that normalisation put to exactly 0 counts as 0 here; a mean over valid voxels would leave it out.
        """
        valid = self._before.valid[z]
        share = np.minimum(np.divide(self._after.valid[z], valid, out=np.zeros_like(valid), where=valid > 0), 1)
        return self._after.mean[z] * share

    def signals(self, z: int, *, own_level: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return (y, x) float32 signal before and after: value minus agarose level, both in the result's units.

        The level is the volume's, or with `own_level` the plane's; one without agarose has that of its neighbours.
        """
        if not own_level:
            level = np.float32(self.units.level_after)
            return self.before(z) - level, self.after(z) - level
        first, second = self._levels[:, z].astype(np.float32)
        return (self.input(z) - first) * np.float32(self.units.scale), self.after(z) - second

    @property
    def stride(self) -> int:
        """Every how many tissue pixels one enters a sample of the volume."""
        return max(1, math.ceil(self.planes["tissue_pixels"].sum() / MAX_SAMPLE))

    def sample(self, *, own_level: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (n,) plane, signal before and signal after of tissue pixels, evenly spaced over the usable planes."""
        parts = [np.zeros((3, 0))]
        for z in np.flatnonzero(self.sections.usable_planes).tolist():
            inside = self.tissue(z)
            before, after = (signal[inside][:: self.stride] for signal in self.signals(z, own_level=own_level))
            parts.append(np.stack([np.full(before.size, z), before, after]))
        planes, before, after = np.concatenate(parts, axis=1)
        return planes.astype(int), before, after

    def _measure(self) -> dict[str, np.ndarray]:
        """Return (Z,) pixels of tissue, and before and after: mean and variance of tissue, median of agarose."""
        names = [f"{what}_{time}" for what in ("mean", "variance", "agarose") for time in ("before", "after")]
        table = {name: np.full(self.shape[0], np.nan) for name in names}
        table["tissue_pixels"] = np.zeros(self.shape[0], int)
        for z in range(self.shape[0]):
            inside, outside = self.tissue(z), self.agarose(z)
            table["tissue_pixels"][z] = inside.sum()
            for time, image in (("before", self.input(z)), ("after", self.after(z))):
                values = image[inside].astype(np.float64)
                if values.size:
                    table[f"mean_{time}"][z], table[f"variance_{time}"][z] = values.mean(), values.var()
                if outside.sum() >= MIN_PIXELS:
                    table[f"agarose_{time}"][z] = np.median(image[outside])
        return table

    def _units(self, zero_based: bool) -> Units:
        usable = self.sections.usable_planes
        weight = self.planes["tissue_pixels"] * usable
        levels = [median(self.planes[f"agarose_{time}"][usable]) for time in ("before", "after")]
        means = [weighted_mean(self.planes[f"mean_{time}"], weight) for time in ("before", "after")]
        if zero_based and not math.isnan(levels[0]):
            levels[1] = 0.0  # by construction; the median of block means lies above it by part of the noise
        if means[0] > levels[0] and means[1] > levels[1]:
            scale = (means[1] - levels[1]) / (means[0] - levels[0])
            rule = "by one linear map for the whole volume, so that agarose level and mean of tissue are the same"
            return Units(levels[0], levels[1], scale, levels[1] - scale * levels[0], rule, from_agarose=True)
        if means[0] > 0 and means[1] > 0:
            why = "no agarose was found" if math.isnan(levels[0]) else "tissue is not brighter than agarose"
            rule = f"by one factor for the whole volume, so that the mean of tissue is the same ({why})"
            return Units(0.0, 0.0, means[1] / means[0], 0.0, rule)
        return Units(
            0.0, 0.0, 1.0, 0.0, "not at all, as no usable section has tissue with a mean above zero", common=False
        )

    def _plane_levels(self, zero_based: bool) -> np.ndarray:
        """Return (2, Z) agarose level of each plane before and after, in their own units."""
        levels = np.repeat(np.array(self.units.levels)[:, None], self.shape[0], axis=1)
        for row, time in enumerate(("before", "after")):
            values = self.planes[f"agarose_{time}"]
            measured = np.flatnonzero(np.isfinite(values) & self.sections.usable_planes)
            if self.units.from_agarose and not (zero_based and time == "after"):
                levels[row] = np.interp(np.arange(self.shape[0]), measured, values[measured])
        return levels


def bias_fields(recipe: Sequence[Correction], shape: tuple[int, int, int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield runs of planes of the recipe's bias field, the product where there are several, on the shrunken grid.

    Parameters
    ----------
    recipe : sequence of Correction
    shape : tuple of int
        Shape (Z, y, x) of the shrunken grid.

    Yields
    ------
    z_start : int
    field : (z, y, x) float32 array
        Corrected intensity is intensity divided by it; 1 in planes that no field covers. A harmonisation is one more
        field. Nothing is yielded where the recipe has none.
    """
    fields = [part for step in recipe if step.kind == "bias_field" for part in cast("BiasCorrection", step).fields]
    even = [cast("Harmonization", step) for step in recipe if step.kind == "harmonization"]
    if not fields and not even:
        return
    edges = {
        *range(0, shape[0], RUN_PLANES),
        shape[0],
        *(edge for start, stop, _field in fields for edge in (start, stop)),
    }
    for start, stop in pairwise(sorted(edges)):
        total = np.zeros((stop - start, *shape[1:]), np.float32)
        for first, last, field in fields:
            if first <= start and stop <= last:
                where = slice(start - first, stop - first), slice(None), slice(None)
                total += field.log_field((last - first, *shape[1:]), where)
        for harmonization in even:
            total += harmonization.small_log_field(slice(start, stop), shape)
        yield start, np.exp(total, out=total)


def median(values: np.ndarray) -> float:
    """Return the median of the finite values, NaN without any."""
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    return float(np.median(finite)) if finite.size else math.nan


def weighted_mean(values: np.ndarray, weight: np.ndarray) -> float:
    """Return the mean of the finite values of positive weight, NaN without any."""
    used = (weight > 0) & np.isfinite(values)
    return float(np.average(values[used], weights=weight[used])) if used.any() else math.nan
