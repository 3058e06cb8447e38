"""A volume before and after its recipe, on the same pixels and in the same units: the base of numbers and pictures."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from n4flow.compute.threads import run_tasks
from n4flow.masks.packed_mask import PackedMask
from n4flow.sections import SectionTable
from n4flow.statistics.shrunken import runs

if TYPE_CHECKING:
    from n4flow.corrections.base import Correction
    from n4flow.corrections.proof import Evidence
    from n4flow.statistics.shrunken import Shrunken, ShrunkenVolume

TIMES = ("before", "after")
MIN_VALID = 0.5  # A pixel counts if at least this share of the voxels in its block is valid.
MIN_PIXELS = 20  # A plane, a pair of planes or a class with fewer pixels gives no number.
AT_A_TIME = 8  # This many planes are read at once.
MAX_SAMPLE = 1 << 20  # Percentiles and the class threshold are taken from at most this many tissue pixels.


@dataclass(frozen=True)
class Units:
    """How the input's intensities relate to the result's: by one linear map for the whole volume.

    Parameters
    ----------
    level_before, level_after : float
        Agarose level in the input's and in the result's units, 0 if there is none. Signal is value minus level.
    scale, offset : float
        `scale * before + offset` has the result's agarose level and mean of tissue.
    rule : str
        How the input is converted to the result's units, in words.
    common : bool
        Whether it could be converted at all.
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


@dataclass
class _Planes:
    """Consecutive planes of a pair, which were read together: the first is `start`, and all shapes are (z, y, x)."""

    start: int
    before: ShrunkenVolume
    after: ShrunkenVolume
    tissue: np.ndarray
    _usable: dict[int, np.ndarray] = field(default_factory=dict)
    _result: dict[int, np.ndarray] = field(default_factory=dict)

    def usable(self, z: int) -> np.ndarray:
        """(y, x) bool: see `Pair.valid`."""
        if z not in self._usable:
            i = z - self.start
            finite = np.isfinite(self.before.mean[i]) & np.isfinite(self.after.mean[i])
            self._usable[z] = finite & (self.before.valid[i] >= MIN_VALID)
        return self._usable[z]

    def result(self, z: int) -> np.ndarray:
        """(y, x) float32: see `Pair.after`."""
        if z not in self._result:
            i = z - self.start
            valid = self.before.valid[i]
            share = np.minimum(np.divide(self.after.valid[i], valid, out=np.zeros_like(valid), where=valid > 0), 1)
            self._result[z] = self.after.mean[i] * share
        return self._result[z]


class Pair:
    """A volume before and after, plane by plane, on the same pixels.

    Parameters
    ----------
    sections : SectionTable
    before, after : ShrunkenVolume or ShrunkenFiles
        Input and result, of shape (Z, y, x), shrunken in plane by the same factor. Only a few planes are in memory at
        a time.
    tissue : (Z, y, x) bool array, PackedMask or None
    agarose : (y, x) bool array or None
    recipe : sequence of Correction
        What was applied to the input, in order.
    evidence : Evidence, optional
        What is proven about the input.

    Attributes
    ----------
    planes : dict of (Z,) arrays
        `tissue_pixels`, and each with `_before` and `_after` behind its name: `mean` and `variance` of tissue,
        `agarose` (the median of agarose).
    inside : PackedMask
        `tissue` of all planes.
    tissue_sums : (y,) and (x,) int64 arrays
        Pixels of tissue in each row and column of the usable planes.
    stride : int
        One in `stride` tissue pixels of a plane enters a sample of the volume.
    """

    def __init__(
        self,
        sections: SectionTable,
        before: Shrunken,
        after: Shrunken,
        tissue: np.ndarray | PackedMask | None,
        agarose: np.ndarray | None,
        recipe: Sequence[Correction] = (),
        evidence: Evidence | None = None,
    ) -> None:
        self.sections, self.recipe, self.evidence = sections, recipe, evidence
        self.shape: tuple[int, int, int] = before.shape
        self._before, self._after = before, after
        self.shrink, self.voxels = before.shrink, before.planes
        self._tissue = (
            PackedMask.of(tissue) if isinstance(tissue, np.ndarray) else tissue or PackedMask.empty(self.shape)
        )
        self.stride = max(1, math.ceil(self._tissue.mean() * math.prod(self.shape) / MAX_SAMPLE))
        self.inside = PackedMask.empty(self.shape)
        self.tissue_sums = np.zeros(self.shape[1], np.int64), np.zeros(self.shape[2], np.int64)
        self._held: dict[int, _Planes] = {}
        self._lock = threading.Lock()
        self._agarose = np.zeros(self.shape[1:], bool) if agarose is None else np.asarray(agarose, bool)
        zero_based = any(correction.zeroes_agarose for correction in recipe)
        if not zero_based and any(correction.zeroes_outside for correction in recipe):
            self._agarose = np.zeros(self.shape[1:], bool)
        self.planes = self._measure()
        self.units = self._units(zero_based)
        self._levels = self._plane_levels(zero_based)

    def _planes(self, z: int) -> _Planes:
        """Return the planes that are read together with plane `z`; the two runs used last are kept in memory."""
        start = z - z % AT_A_TIME
        with self._lock:
            if start not in self._held:
                stop = min(start + AT_A_TIME, self.shape[0])
                parts = self._before.part(start, stop), self._after.part(start, stop)
                for old in sorted(self._held, key=lambda held: abs(held - start))[1:]:
                    del self._held[old]
                self._held[start] = _Planes(start, *parts, np.asarray(self._tissue[start:stop], bool))
            return self._held[start]

    def over(self, function: Callable[[int], Any]) -> list[Any]:
        """Return `function(z)` for every plane in order, computed by all threads; it may read plane z + 1, too."""
        found = []
        for start in range(0, self.shape[0], AT_A_TIME):
            for first in (start, start + AT_A_TIME):  # Read here, all threads take part; in `function` only one would.
                if first < self.shape[0]:
                    self._planes(first)
            found += run_tasks(function, range(start, min(start + AT_A_TIME, self.shape[0])))
        return found

    def valid(self, z: int) -> np.ndarray:
        """(y, x) bool: pixels of which at least half the voxels were valid in the input."""
        return self._planes(z).usable(z)

    def tissue(self, z: int) -> np.ndarray:
        """(y, x) bool: valid pixels in the tissue mask."""
        planes = self._planes(z)
        return planes.tissue[z - planes.start] & planes.usable(z)

    def agarose(self, z: int) -> np.ndarray:
        """(y, x) bool: valid pixels in the agarose mask and outside tissue."""
        planes = self._planes(z)
        return self._agarose & ~planes.tissue[z - planes.start] & planes.usable(z)

    def input(self, z: int) -> np.ndarray:
        """(y, x) float32: the input, in its own units."""
        planes = self._planes(z)
        return planes.before.mean[z - planes.start]

    def before(self, z: int) -> np.ndarray:
        """(y, x) float32: the input in the result's units."""
        return self.input(z) * np.float32(self.units.scale) + np.float32(self.units.offset)

    def after(self, z: int) -> np.ndarray:
        """(y, x) float32: the result's mean over the voxels that were valid in the input.

        A voxel that normalisation put to exactly 0 counts as 0 here; a mean over valid voxels would leave it out.
        """
        return self._planes(z).result(z)

    def signals(self, z: int, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (n,) float32 signal before and after: value minus the volume's agarose level, in the result's units.

        `chosen` (n,) are indices into the flattened plane.
        """
        return self._above_level(self.input(z).reshape(-1)[chosen], self.after(z).reshape(-1)[chosen])

    def own_signals(self, z: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (y, x) float32 signal before and after: value minus the plane's agarose level, in the result's units.

        A plane without agarose has the level of its neighbours.
        """
        return self._above_own_level(self.input(z), self.after(z), *self._levels[:, z])

    def _above_level(self, before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return signals above the volume's level; `before` and `after` are each in their own units."""
        level, scale, offset = (np.float32(x) for x in (self.units.level_after, self.units.scale, self.units.offset))
        return before * scale + offset - level, after - level

    def _above_own_level(self, before: Any, after: Any, first: Any, second: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return signals above the levels `first` and `second`; all are in the units of the input and of the result."""
        first, second = np.float32(first), np.float32(second)
        return (before - first) * np.float32(self.units.scale), after - second

    def sample(self, *, own_level: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (n,) plane, signal before and signal after of tissue pixels, evenly spaced over the usable planes."""
        planes, before, after = self._sampled
        if own_level:
            return planes, *self._above_own_level(before, after, *self._levels[:, planes])
        return planes, *self._above_level(before, after)

    def _measure(self) -> dict[str, np.ndarray]:
        """Return `planes`; set `inside`, `tissue_sums` and the sample."""
        names = [f"{what}_{time}" for what in ("mean", "variance", "agarose") for time in ("before", "after")]
        table = {name: np.full(self.shape[0], np.nan) for name in names}
        table["tissue_pixels"] = np.zeros(self.shape[0], int)

        def measure(z: int) -> tuple[np.ndarray, ...]:
            inside, outside = self.tissue(z), self.agarose(z)
            self.inside[z] = inside
            rows, columns = inside.sum(axis=1), inside.sum(axis=0)
            table["tissue_pixels"][z] = rows.sum()
            for time, image in (("before", self.input(z)), ("after", self.after(z))):
                values = image[inside].astype(np.float64)
                if values.size:
                    table[f"mean_{time}"][z], table[f"variance_{time}"][z] = values.mean(), values.var()
                if outside.sum() >= MIN_PIXELS:
                    table[f"agarose_{time}"][z] = middle(image[outside])
            chosen = np.flatnonzero(inside)[:: self.stride]
            return rows, columns, self.input(z).reshape(-1)[chosen], self.after(z).reshape(-1)[chosen]

        usable = np.flatnonzero(self.sections.usable_planes)
        found = self.over(measure)
        for z in usable:
            for total, counted in zip(self.tissue_sums, found[z], strict=False):
                total += counted
        before, after = (np.concatenate([np.zeros(0, np.float32), *(found[z][i] for z in usable)]) for i in (2, 3))
        self._sampled = np.repeat(usable.astype(np.int32), [found[z][2].size for z in usable]), before, after
        return table

    def _units(self, zero_based: bool) -> Units:
        usable = self.sections.usable_planes
        weight = self.planes["tissue_pixels"] * usable
        levels = [median(self.planes[f"agarose_{time}"][usable]) for time in ("before", "after")]
        means = [weighted_mean(self.planes[f"mean_{time}"], weight) for time in ("before", "after")]
        if zero_based and not math.isnan(levels[0]):
            levels[1] = 0.0  # Exact by construction; the median of block means is larger, as noise below 0 was clipped.
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


def log_bias_fields(recipe: Sequence[Correction], shape: tuple[int, int, int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield runs of planes of the log field that the recipe divides by, the sum of several, on the shrunken grid.

    Parameters
    ----------
    recipe : sequence of Correction
    shape : tuple of int
        Shape (Z, y, x) of the shrunken grid.

    Yields
    ------
    z_start : int
    log_field : (z, y, x) float32 array
        0 in planes that no field covers. Nothing is yielded where the recipe has no field.
    """
    steps = [step for step in recipe if step.is_field]
    for start, stop in runs(0, shape[0] if steps else 0):
        total = np.zeros((stop - start, *shape[1:]), np.float32)
        for step in steps:
            total += step.shrunken_log_field(slice(start, stop), (shape[1], shape[2]))
        yield start, total


def middle(values: np.ndarray) -> float:
    """Return the median of finite values (n,), n > 0: the value of `numpy.median` in a tenth of its time.

    NumPy uses vector instructions to partition an array around one index, but not around the two or three indices that
    its median asks for.
    """
    half = len(values) // 2
    parted = np.partition(values, half)
    return float(parted[half] if len(values) % 2 else np.mean([parted[:half].max(), parted[half]], dtype=values.dtype))


def median(values: np.ndarray) -> float:
    """Return the median of the finite values, NaN without any."""
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    return float(np.median(finite)) if finite.size else math.nan


def weighted_mean(values: np.ndarray, weight: np.ndarray) -> float:
    """Return the mean of the finite values of positive weight, NaN without any."""
    used = (weight > 0) & np.isfinite(values)
    return float(np.average(values[used], weights=weight[used])) if used.any() else math.nan
