"""The map of each section as a step of the recipe: a monotone piecewise-linear function of the intensity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any, ClassVar

import numpy as np

from n4flow.compute.arrays import LARGEST, array_module
from n4flow.compute.threads import parallel_planes
from n4flow.corrections.base import ArgumentsOfRun, Correction, Where, misfits

MATCHED, BORROWED, IDENTITY = 0, 1, 2
STATUS = ("matched", "borrowed", "left_alone")
MOST_STEPS = 1 << 15  # Steps of the table that finds a segment, at most: a longer one leaves the cache.


@dataclass
class SectionLookup(Correction):
    """Map intensities above a threshold through one monotone piecewise-linear function per section or plane.

    Parameters
    ----------
    threshold : float
        Intensities at or below it are unchanged; every map begins at (threshold, threshold).
    map_of_plane : (Z,) int32 array
        Which map a plane takes; -1: none, the plane is unchanged.
    status : (Z,) uint8 array
        0 matched, 1 map borrowed from the nearest matched section, 2 left alone.
    offsets : (maps + 1,) int64 array
        Where each map's knots begin.
    knots_x, knots_y : float64 arrays
        Knots of all maps, strictly ascending in x and never descending in y within a map.
    share : (maps,) float64 array or None
        Of the level of each map, what is applied, see `proof`; None: the whole map.
    slope_above : (maps,) float64 array or None
        Slope of each map above its last knot; None: the ratio of y and x there, both counted from the threshold.
    most : float or None
        What no map exceeds above its last knot.
    """

    kind: ClassVar[str] = "section_lookup"
    title: ClassVar[str] = "sections matched to the pooled histogram of tissue"
    fused: ClassVar[str] = "lookup"
    is_map: ClassVar[bool] = True
    threshold: float
    map_of_plane: np.ndarray
    status: np.ndarray
    offsets: np.ndarray
    knots_x: np.ndarray
    knots_y: np.ndarray
    share: np.ndarray | None = None
    slope_above: np.ndarray | None = None
    most: float | None = None

    def apply(self, block: Any, where: Where) -> Any:
        """Return the mapped block; zeros and non-finite voxels stay as they are. NumPy or CuPy, in place."""
        xp = array_module(block)
        block = xp.ascontiguousarray(block, dtype=xp.float32)
        maps, below = self.map_of_plane[where.z : where.z + block.shape[0]].tolist(), self.below

        def work(start: int, stop: int) -> None:
            for number, run in groupby(range(start, stop), maps.__getitem__):
                if number < 0:
                    continue
                (segments, *table), part = self._table(number), slice((rows := list(run))[0], rows[-1] + 1)
                if xp is np and table:
                    from n4flow.corrections import kernels

                    kernels.plane_lookup(block[part].reshape(-1), below, *table)
                else:
                    block[part] = _lookup_arrays(block[part], below, segments)

        if xp is np:
            parallel_planes(work, block.shape[0])
        else:
            work(0, block.shape[0])
        return block

    def faults(self, shape: tuple[int, int, int]) -> Iterator[str]:
        """See `Correction.faults`."""
        maps, knots = len(self.offsets) - 1, self.knots_x.size
        yield from misfits("map_of_plane", self.map_of_plane, shape[:1], -1, maps - 1)
        yield from misfits("status", self.status, shape[:1], 0, len(STATUS) - 1)
        yield from misfits("knots_x", self.knots_x, (knots,), -LARGEST, LARGEST)
        yield from misfits("knots_y", self.knots_y, (knots,), -LARGEST, LARGEST)
        for name, values in (("share", self.share), ("slope_above", self.slope_above)):
            if values is not None:
                yield from misfits(name, values, (maps,), -LARGEST, LARGEST)
        for name, value in (("threshold", self.threshold), ("most", self.most)):
            if value is not None:
                yield from misfits(name, np.asarray(value, float), (), -LARGEST, LARGEST)
        places = np.asarray(self.offsets)
        if places.ndim != 1 or places[0] != 0 or places[-1] != knots or (np.diff(places) < 1).any():
            yield f"offsets must rise from 0 to the {knots} knots"
            return
        within = np.ones(max(knots - 1, 0), bool)
        within[places[1:-1] - 1] = False  # from one map to the next
        if self.knots_y.shape == self.knots_x.shape and (
            (np.diff(self.knots_x)[within] <= 0).any() or (np.diff(self.knots_y)[within] < 0).any()
        ):
            yield "knots of a map must ascend"

    def fusible(self, start: int, stop: int) -> bool:
        """Return whether the map of every plane from one to another has a table for `plane_lookup`."""
        return all(i < 0 or len(self._table(i)) > 1 for i in set(self.map_of_plane[start:stop].tolist()))

    def fused_arguments(self, block: Any, where: Where) -> ArgumentsOfRun:
        """See `Correction.fused_arguments`: of runs with one map; on a GPU the maps of all planes."""
        maps, xp = self.map_of_plane[where.z : where.z + block.shape[0]], array_module(block)
        if xp is not np:
            places, segments = (xp.asarray(values) for values in self._joined_segments(maps.tolist()))
            return lambda start, stop: (stop, (places[start:stop], segments, self.below))

        def run(start: int, stop: int) -> tuple[int, Any]:
            number = maps[start]
            others = np.flatnonzero(maps[start:stop] != number)
            stop = start + int(others[0]) if others.size else stop
            return stop, None if number < 0 else (self.below, *self._table(int(number))[1:])

        return run

    def _joined_segments(self, maps: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return where the segments of each plane's map begin and how many there are, and the segments of all maps."""
        tables = {i: self.segments(i) for i in sorted(set(maps)) if i >= 0}
        ends = np.cumsum([0, *(table.size for table in tables.values())])
        place = {i: (int(end), table.shape[1]) for (i, table), end in zip(tables.items(), ends, strict=False)}
        flat = [table.reshape(-1) for table in tables.values()] or [np.zeros(1, np.float32)]
        return np.array([place.get(i, (0, 0)) for i in maps], np.int32), np.concatenate(flat).astype(np.float32)

    @cached_property
    def below(self) -> np.float32:
        """The threshold as float32, rounded down: what is above it is above the threshold."""
        below = np.float32(self.threshold)
        return below if below <= self.threshold else np.nextafter(below, np.float32(-np.inf))

    def segments(self, i: int) -> np.ndarray:
        """Return the segments of map `i`: (4, n) float32, x and y of the knots, slopes, the y of each's end."""
        return self._table(i)[0]

    @cached_property
    def _tables(self) -> dict[int, tuple[np.ndarray, ...]]:
        return {}

    def _table(self, i: int) -> tuple[np.ndarray, ...]:
        """Return the table of map `i`, made once."""
        if i not in self._tables:
            self._tables[i] = self._new_table(i)
        return self._tables[i]

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # no cached property is pickled

    def _new_table(self, i: int) -> tuple[np.ndarray, ...]:
        """Return the segments, and what `kernels.plane_lookup` takes of them.

        The latter is left out where knots are too close for a table of a sensible size, which no estimate makes.
        """
        part = slice(self.offsets[i], self.offsets[i + 1])
        x, y = (knots[part].astype(np.float32).astype(np.float64) for knots in (self.knots_x, self.knots_y))
        apart = np.append(np.diff(x) > 0, True)  # knots that round to one float32 leave no segment
        above = (y[-1] - y[0]) / (x[-1] - x[0]) if self.slope_above is None else self.slope_above[i]
        slopes = np.append(np.diff(y)[apart[:-1]] / np.diff(x)[apart[:-1]], above)
        most = np.append(y[1:], np.inf if self.most is None else self.most)[apart]
        x, y = x[apart], y[apart]
        segments = np.stack([x, y, slopes, most]).astype(np.float32)
        extent, after = x[-1] - x[0], np.append(x[1:], np.inf)
        n_steps = len(x)
        while n_steps <= MOST_STEPS:
            slack = 2.0**-21 * extent  # more than float32 rounds an edge by
            edges = x[0] + extent * np.arange(n_steps + 1) / n_steps
            before = np.maximum(np.searchsorted(x, edges[:-1] - slack, side="right") - 1, 0)
            if (np.searchsorted(x, edges[1:] + slack, side="right") - 1 - before <= 1).all():
                starts = np.stack([after[before], before], axis=1)
                return segments, segments.T.copy(), starts.astype(np.float32)
            n_steps *= 2
        return (segments,)

    @property
    def bends(self) -> bool:
        """See `Correction.bends`; where only its level is applied, a map is a gain."""
        return self.share is None

    @property
    def avoided_by(self) -> str:
        """See `Correction.avoided_by`."""
        return "--trust proven, or --match off" if self.share is None else "--match off"

    def shares(self, n_planes: int) -> np.ndarray:
        """See `Correction.shares`; of a map's level, where that alone is applied."""
        share = np.ones(len(self.offsets) - 1) if self.share is None else self.share
        return np.where(self.map_of_plane < 0, np.nan, np.append(share, np.nan)[self.map_of_plane])

    @property
    def idle(self) -> bool:
        """See `Correction.idle`."""
        return len(self.offsets) < 2

    def draw(self, place: Any) -> None:
        """Draw the map of each section, or plane: intensity after over intensity before."""
        for first, stop in pairwise(self.offsets):
            place.plot(self.knots_x[first:stop], self.knots_y[first:stop], linewidth=0.8)
        place.set(xlabel="before", ylabel="after")

    def summary(self) -> dict[str, Any]:
        """Return how many planes were matched and how strongly the maps change intensities."""
        counts = np.bincount(self.status, minlength=len(STATUS))
        ratios = [
            np.median((self.knots_y[a + 1 : b] - self.threshold) / (self.knots_x[a + 1 : b] - self.threshold))
            for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True)
        ]
        return {
            "threshold": float(self.threshold),
            "maps": len(self.offsets) - 1,
            **{f"planes_{name}": int(n) for name, n in zip(STATUS, counts, strict=True)},
            "gain_min": float(min(ratios, default=1.0)),
            "gain_max": float(max(ratios, default=1.0)),
            "share": float(1 if self.share is None or not self.share.size else self.share.mean()),
        }


def _lookup_arrays(block: Any, threshold: Any, segments: np.ndarray) -> Any:
    """Do what `kernels.plane_lookup` does in array operations, on the device that owns `block`."""
    xp = array_module(block)
    knot_x, knot_y, slope, most = (xp.asarray(row) for row in segments[:4])
    j = xp.clip(xp.searchsorted(knot_x, block, side="right") - 1, 0, knot_x.size - 1)
    mapped = xp.minimum(knot_y[j] + (block - knot_x[j]) * slope[j], most[j])
    return xp.where((block > threshold) & (block != 0) & xp.isfinite(block), mapped, block)
