"""Histogram matching: each section (or plane) to the pooled distribution, by a monotone piecewise-linear map.

For a section with N voxels above the threshold, sorted and cut into groups j that hold the shares u_j .. u_(j+1) of
them, the map runs through the knots (x_j, y_j): x_j is the mean of the group, y_j the mean of the pooled
distribution between the same shares, y_j = (G(u_(j+1)) - G(u_j)) / (u_(j+1) - u_j), where G is the integral of the
pooled quantile function. So the map is monotone, takes the section's mean to the pooled mean, and is the identity for a
section that is distributed as the pool. Groups are equal steps, `n_bins` over the pooled range; neighbours are
joined until a group has enough voxels to say anything, so spans without evidence are bridged by the line between
their neighbours. Above its last knot a map goes on with the ratio y / x that it has there, or less steeply, so that the
brightest voxel of the section does not become brighter than the brightest of the pool.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from n4flow.compute.arrays import as_block, as_mask, is_dask, probe_gpu, takes_arrays, to_numpy
from n4flow.compute.gpu import as_float32, on_device, run_on_gpu, stream_planes
from n4flow.corrections.base import Correction, Where, map_through
from n4flow.corrections.dask import apply_lazily, estimate_lazily
from n4flow.corrections.section_lookup import BORROWED, IDENTITY, MATCHED, SectionLookup
from n4flow.errors import InputError, N4flowWarning
from n4flow.masks.agarose_levels import least_voxels
from n4flow.sections import Section, SectionsLike, SectionTable, filled_planes
from n4flow.statistics.histograms import Distributions, Pairs, PlaneHistograms
from n4flow.statistics.measure import plane_histograms
from n4flow.statistics.pooling import Pool, pool, weighted_percentile

KNOT_VOXELS = 64  # a knot rests on this many voxels, or a sixteenth of the section's when that is less
ONE_VALUE_SHARE = 0.85  # a section with this share of its voxels in one bin (constant, saturated) has no distribution
TAIL_SHARE = 0.999  # voxels of a section that shape its map; the brightest, debris among them, follow its last knot


def _without_tail(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Return values and counts (float64) without the brightest thousandth of the voxels, where debris is."""
    values, counts = pairs[0].astype(np.float64), pairs[1].astype(np.float64)
    below = np.cumsum(counts) - counts
    counts = np.clip(TAIL_SHARE * counts.sum() - below, 0, counts)
    return values[counts > 0], counts[counts > 0]


def _join(counts: np.ndarray, moments: np.ndarray, enough: float, near: float) -> np.ndarray:
    """Join neighbouring groups until each has `enough` voxels and means are `near` apart; rows (count, moment)."""
    rows: list[tuple[float, float]] = []

    def mean(row: tuple[float, float]) -> float:
        return row[1] / row[0]

    def merge(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
        return a[0] + b[0], a[1] + b[1]

    for group in zip(counts.tolist(), moments.tolist(), strict=True):
        if not rows:
            rows.append(group)
        elif mean(group) - mean(rows[-1]) < near:
            rows[-1] = merge(rows[-1], group)
        elif rows[-1][0] >= enough:
            rows.append(group)
        elif len(rows) > 1 and mean(rows[-1]) - mean(rows[-2]) < mean(group) - mean(rows[-1]):
            rows[-2:] = [merge(*rows[-2:]), group]  # a thin group goes to the nearer side, not across a gap
        else:
            rows[-1] = merge(rows[-1], group)
    if len(rows) > 1 and rows[-1][0] < enough:
        rows[-2:] = [merge(*rows[-2:])]
    return np.array(rows)


@dataclass(frozen=True)
class _Target:
    """The pooled distribution that sections are matched to, as the integral of its quantile function."""

    shares: np.ndarray  # of its voxels, from 0 to 1
    integral: np.ndarray  # up to each
    threshold: float  # that every map begins at
    low: float  # the lowest pooled intensity
    width: float  # of the steps in which sections are grouped

    @classmethod
    def of(cls, pairs: Pairs, threshold: float, n_bins: int) -> _Target:
        """Measure pooled pairs."""
        low = float(pairs[0][0])
        width = (weighted_percentile(*pairs, 100 * TAIL_SHARE) - low) / n_bins
        values, counts = _without_tail(pairs)
        shares, integral = (np.concatenate([[0.0], np.cumsum(n)]) / counts.sum() for n in (counts, counts * values))
        return cls(shares, integral, threshold, low, width)

    def knots(self, pairs: Pairs) -> Pairs:
        """Return the knots (x, y) of the map of a section with these pairs, beginning at (threshold, threshold)."""
        values, counts = _without_tail(pairs)
        _used, first = np.unique(((values - self.low) / self.width).astype(np.int64), return_index=True)
        groups = _join(
            np.add.reduceat(counts, first),
            np.add.reduceat(counts * values, first),
            min(KNOT_VOXELS, counts.sum() / 16),
            0.5 * self.width,
        )
        share = np.concatenate([[0.0], np.cumsum(groups[:, 0])]) / counts.sum()
        mean = np.diff(np.interp(share, self.shares, self.integral)) / np.diff(share)
        x = np.concatenate([[self.threshold], groups[:, 1] / groups[:, 0]])
        return x, np.concatenate([[self.threshold], np.maximum.accumulate(mean)])

    def slope_above(self, knots: Pairs, highest: float, pooled: float) -> float:
        """Return the slope above the last knot of a map, which takes no intensity up to `highest` beyond `pooled`."""
        x, y = knots
        ratio = (y[-1] - self.threshold) / (x[-1] - self.threshold)
        return float(min(ratio, max(pooled - y[-1], 0.0) / (highest - x[-1]))) if highest > x[-1] else float(ratio)


def estimate_lookup(
    histograms: Distributions,
    previous: Sequence[Correction] = (),
    sections: SectionsLike = None,
    n_bins: int = 256,
    tissue_threshold: float = 0.0,
    cls: str = "tissue",
) -> SectionLookup:
    """Estimate the maps from the histograms of all planes.

    Parameters
    ----------
    histograms : Distributions
        Of the whole volume.
    previous : sequence of corrections
        Applied before this one, in order; the histograms are pushed through their maps.
    sections : section table, count or None
        What is matched as one; None: each plane by itself. A flagged section enters no estimate and takes the map of
        the nearest matched section. So does one with a single intensity (constant, saturated). One with next to no
        voxels above the threshold is left alone.
    n_bins : int
        Equal steps from the lowest pooled intensity above the threshold to the 99.9th percentile.
    tissue_threshold : float
        Intensities at or below it are unchanged and not counted.
    cls : str
        `tissue`, or `all` where there is no tissue mask.
    """
    if n_bins < 1 or not np.isfinite(tissue_threshold):
        msg = f"n_bins must be at least 1 and tissue_threshold finite, got {n_bins} and {tissue_threshold}"
        raise InputError(msg)
    table = SectionTable.coerce(sections, histograms.n_planes)

    def above(z: int) -> Pairs:
        values, counts = histograms.pairs(z, cls)
        values = map_through(previous, values, z)
        keep = np.isfinite(values) & (values != 0) & (values > tissue_threshold)
        return values[keep], counts[keep]

    def top(z: int) -> float:
        return float(map_through(previous, np.array([histograms.highest(z)], np.float32), z)[0])

    def distribution(section: Section) -> Pairs:
        if section.z_stop - section.z_start == 1:  # each of many, for which a pool takes longer than the rest
            return pool(*above(section.z_start))
        pooled = Pool()
        for z in range(section.z_start, section.z_stop):
            pooled.add(*above(z))
        return pooled.pairs()

    # The pairs of a section are read three times, which is cheaper than to keep them: to count, to pool, and to map it.
    counts, highest = np.array([(n.sum(), n.max(initial=0)) for _v, n in map(distribution, table)]).T
    usable = np.array([s.usable for s in table])
    tissue = counts >= least_voxels(counts[usable])
    spread = highest < ONE_VALUE_SHARE * np.maximum(1, counts)
    matched = usable & tissue & spread
    status = np.where(matched, MATCHED, np.where(usable & ~tissue, IDENTITY, BORROWED))
    if not matched.any():
        msg = "no section has a distribution of intensities above the threshold: histogram matching changes nothing"
        warnings.warn(msg, N4flowWarning, stacklevel=2)
        numbers, same = np.full(histograms.n_planes, -1, np.int32), np.full(histograms.n_planes, IDENTITY, np.uint8)
        return SectionLookup(float(tissue_threshold), numbers, same, np.zeros(1, np.int64), np.empty(0), np.empty(0))
    chosen = np.flatnonzero(matched)
    measured = [table[i] for i in chosen.tolist()]
    reference = Pool()
    for section in measured:
        reference.add(*distribution(section))
    target = _Target.of(reference.pairs(), float(tissue_threshold), n_bins)
    maps = [target.knots(distribution(section)) for section in measured]
    tops = np.array([top(z) for z in range(histograms.n_planes)])
    own = [tops[section.planes].max() for section in measured]
    edges = table.edges(filled_planes(histograms.filled))
    centre = (edges[:-1] + edges[1:]) / 2
    nearest = np.array([np.argmin(np.abs(centre[chosen] - c)) for c in centre])
    of_section = np.where(status == IDENTITY, -1, nearest)
    plane = table.section_of_plane
    offsets = np.concatenate([[0], np.cumsum([len(x) for x, _y in maps])])
    knots_x, knots_y = (np.concatenate([m[part] for m in maps]) for part in (0, 1))
    return SectionLookup(
        float(tissue_threshold),
        of_section[plane].astype(np.int32),
        status[plane].astype(np.uint8),
        offsets,
        knots_x,
        knots_y,
        slope_above=np.array([target.slope_above(*each, max(own)) for each in zip(maps, own, strict=True)]),
        most=float(tops.max()),
    )


@takes_arrays
def apply_histogram_matching(
    vol: ArrayLike,
    n_serial_slices: SectionsLike,
    n_bins: int,
    tissue_threshold: float = 0.0,
    use_gpu: bool = False,
    *,
    mask: ArrayLike | None = None,
) -> NDArray[np.float32]:
    """Match the distribution of each section to the pooled one.

    Parameters
    ----------
    vol : (Z, Y, X) array
        NumPy, CuPy or dask (then lazy); any real type and any range of intensities; never modified.
    n_serial_slices : int, section table or None
        Count of sections (equal split, remainder spread), table, or None: each plane by itself.
    n_bins : int
        Steps of the pooled range, see `estimate_lookup`.
    tissue_threshold : float
        Voxels at or below it are unchanged.
    use_gpu : bool
        Compute on the GPU also when `vol` is in host memory. Without a working GPU that is a GpuError, not a change
        of device.
    mask : (Z, Y, X) mask, optional
        Estimate from these voxels alone, as the workflow does; the maps still act on all voxels above the threshold.

    Returns
    -------
    (Z, Y, X) float32 array of the kind of `vol`.
    """
    options = n_serial_slices, n_bins, tissue_threshold, "all" if mask is None else "tissue"
    block = as_block(vol)
    if use_gpu:
        probe_gpu()
    if is_dask(block):
        if use_gpu:
            import cupy

            block = block.map_blocks(cupy.asarray, meta=cupy.empty((0, 0, 0), block.dtype))
        result = apply_lazily(block, estimate_lazily(estimate_lookup, block, (), *options, tissue=mask))
        return result.map_blocks(to_numpy, meta=np.empty((0, 0, 0), np.float32)) if use_gpu else result
    tissue = None if mask is None else as_mask(mask, block.shape)
    if on_device(block):
        return run_on_gpu(lambda _voxels: _matched(block, tissue, *options), release=False)
    if use_gpu:
        return run_on_gpu(lambda voxels: _matched_through_gpu(voxels, block, tissue, *options), release=True)
    return _matched(block, tissue, *options)


def _matched(vol: Any, tissue: Any, *options: Any) -> Any:
    correction = estimate_lookup(plane_histograms(vol, tissue), (), *options)
    return correction.apply(vol.astype(np.float32), Where(0, 0, 0, tuple(vol.shape)))


def _matched_through_gpu(voxels: int, vol: np.ndarray, tissue: Any, *options: Any) -> np.ndarray:
    """Match a host array on the GPU, in blocks of planes: once to count, once to map."""
    parts = []

    def count(blocks: list[Any], planes: slice, _results: list[Any]) -> None:
        inside = None if tissue is None else blocks[1]
        parts.append(plane_histograms(blocks[0], inside, z_start=planes.start))

    stream_planes([vol] if tissue is None else [vol, to_numpy(tissue)], count, [], voxels)
    correction = estimate_lookup(PlaneHistograms.concatenate(parts), (), *options)
    out = np.empty(vol.shape, np.float32)

    def apply(blocks: list[Any], planes: slice, results: list[Any]) -> None:
        results[0][...] = correction.apply(as_float32(blocks[0]), Where(planes.start, 0, 0, tuple(vol.shape)))

    stream_planes([vol], apply, [out], voxels)
    return out
