"""Agarose to zero, brightness between sections kept: the plane range, and section scale factors.

Per plane z: out = (clip(v, lower_z, upper_z) - lower_z) / span, where lower_z is the agarose median, upper_z a high
percentile of all valid voxels and span the largest upper_z - lower_z of the usable planes, or a percentile of them. One
divisor for the whole volume keeps what one section is brighter than another; agarose at or below its level becomes
exactly 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from n4flow.compute.arrays import LARGEST, SMALLEST, array_module, as_block, is_dask, takes_arrays
from n4flow.compute.threads import parallel_planes
from n4flow.corrections.base import ArgumentsOfRun, Correction, Where, misfits
from n4flow.corrections.dask import apply_lazily, estimate_lazily
from n4flow.errors import InputError, N4flowWarning
from n4flow.masks.agarose_levels import BORROWED, SOURCES, fill_levels, has_evidence, least_voxels
from n4flow.sections import SectionsLike, SectionTable, filled_planes
from n4flow.statistics.histograms import Distributions
from n4flow.statistics.measure import plane_histograms
from n4flow.statistics.pooling import weighted_percentile

PERCENTILE_MAX = 99.9
MIN_CONTRAST = 0.1  # of the largest span, which a divisor that is a percentile of spans is at least


@dataclass
class PlaneRange(Correction):
    """Clip each plane to its range, subtract the agarose level and divide by one span.

    Parameters
    ----------
    lower, upper : (Z,) float32 arrays
        Agarose level and cap of each plane, in the intensity unit of the volume.
    span : float
        The divisor of the whole volume, positive.
    source : (Z,) uint8 array
        Where each level comes from: 0 the plane's own agarose, 1 borrowed, 2 unknown.
    confidence : (Z,) float32 array
        From 0 to 1, see `agarose_levels.Levels`.
    """

    kind: ClassVar[str] = "plane_range"
    title: ClassVar[str] = "agarose put at zero and planes brought to one range"
    fused: ClassVar[str] = "limits"
    is_map: ClassVar[bool] = True
    zeroes_agarose: ClassVar[bool] = True
    lower: np.ndarray
    upper: np.ndarray
    span: float
    source: np.ndarray
    confidence: np.ndarray

    def faults(self, shape: tuple[int, int, int]) -> Iterator[str]:
        """See `Correction.faults`."""
        planes = shape[:1]
        yield from misfits("lower", self.lower, planes, -LARGEST, LARGEST)
        yield from misfits("upper", self.upper, planes, -LARGEST)
        yield from misfits("source", self.source, planes, 0, len(SOURCES) - 1)
        yield from misfits("confidence", self.confidence, planes, 0, 1)
        yield from misfits("span", np.asarray(self.span, float), (), SMALLEST, LARGEST)

    @property
    def bends(self) -> bool:
        """See `Correction.bends`: what is brighter than the upper limit is clipped."""
        return True

    @property
    def avoided_by(self) -> str:
        """See `Correction.avoided_by`."""
        return "a higher --percentile-max, or --normalize false"

    def apply(self, block: Any, where: Where) -> Any:
        """Return the block with agarose at 0; exact zeros and non-finite voxels stay. NumPy or CuPy, in place."""
        xp, (_stop, (lower, upper, span)) = array_module(block), self.fused_arguments(block, where)(0, len(block))
        if xp is np:
            from n4flow.corrections import kernels

            block = np.ascontiguousarray(block, np.float32)
            parallel_planes(lambda a, b: kernels.plane_range(block[a:b], lower[a:b], upper[a:b], span), len(block))
            return block
        lower, upper = lower[:, None, None], upper[:, None, None]
        mapped = (xp.maximum(xp.minimum(block, upper), lower) - lower) / span
        return xp.where(xp.isfinite(block) & (block != 0), mapped, block)

    def fused_arguments(self, block: Any, where: Where) -> ArgumentsOfRun:
        """See `Correction.fused_arguments`: lower, upper, span."""
        xp, planes, span = array_module(block), slice(where.z, where.z + block.shape[0]), np.float32(self.span)
        lower, upper = self.lower[planes], self.upper[planes]
        if xp is not np:
            lower, upper = xp.asarray(lower, xp.float32), xp.asarray(upper, xp.float32)
        return lambda start, stop: (stop, (lower[start:stop], upper[start:stop], span))

    @property
    def divisor(self) -> float:
        """The span."""
        return float(self.span)

    @property
    def idle(self) -> bool:
        """See `Correction.idle`."""
        return bool(self.span == 1 and not self.lower.any() and np.isinf(self.upper).all())

    def summary(self) -> dict[str, Any]:
        """Return range, span and where the agarose levels come from."""
        counts = np.bincount(self.source, minlength=len(SOURCES))
        return {
            "agarose_level_min": float(self.lower.min()),
            "agarose_level_max": float(self.lower.max()),
            "span": float(self.span),
            **{f"planes_{name}": int(n) for name, n in zip(SOURCES, counts, strict=True)},
            "borrowed_planes": [int(z) for z in np.flatnonzero(self.source == BORROWED)],
        }


def estimate_plane_range(
    histograms: Distributions,
    sections: SectionsLike = None,
    percentile_max: float = PERCENTILE_MAX,
    min_contrast_fraction: float = MIN_CONTRAST,
    span_percentile: float = 100.0,
) -> PlaneRange:
    """Estimate the plane range from histograms of all planes.

    Parameters
    ----------
    histograms : Distributions
        Classes `agarose` and all; the whole volume.
    sections : section table, count or None
        Flagged sections enter no estimate: their level is borrowed, and they are clipped only at the top of the common
        range.
    percentile_max : float
        Percentile (0 to 100) of a plane's valid voxels at which it is clipped.
    min_contrast_fraction, span_percentile : float
        See `normalize_volume`.

    Raises
    ------
    InputError
        A percentile outside 0 to 100, or a fraction outside 0 to 1.
    """
    for name, value in (("percentile_max", percentile_max), ("span_percentile", span_percentile)):
        if not 0 < value <= 100:
            msg = f"{name} must be above 0 and at most 100 (percent), got {value}"
            raise InputError(msg)
    if not 0 <= min_contrast_fraction <= 1:
        msg = f"min_contrast_fraction must be from 0 to 1 (of the largest span), got {min_contrast_fraction}"
        raise InputError(msg)
    table = SectionTable.coerce(sections, histograms.n_planes)
    usable = table.usable_planes
    tops, medians, counts, valid = histograms.per_plane(
        ("percentile", percentile_max), ("median", "agarose"), ("count", "agarose"), ("count",)
    )
    evidence = has_evidence(medians, counts, np.nan_to_num(tops), usable)
    levels = fill_levels(medians, evidence, table, filled_planes(histograms.filled))
    # Where the agarose is missing, the percentile of all voxels is one of tissue; take the rank that it usually has.
    rest = (valid - counts)[evidence].sum()
    rank = 100 - (100 - percentile_max) * min(100.0, valid[evidence].sum() / rest if rest else 1.0)
    for z in np.flatnonzero(usable & (levels.source == BORROWED)).tolist():
        tops[z] = histograms.percentile(z, rank)
    lower, tops = levels.values, tops.astype(np.float32)
    measured = usable & np.isfinite(tops)
    spans = tops[measured] - lower[measured]  # float32, as `apply` subtracts
    span = largest = np.max(spans, initial=np.float32(0))
    if largest > 0 and span_percentile < 100:
        usual = max(np.percentile(spans, span_percentile), min_contrast_fraction * largest)
        span = np.float32(usual if usual > 0 else largest)
    if span >= SMALLEST:
        cap = lower + span
        cap = np.where(cap - lower > span, np.nextafter(cap, lower), cap)  # rounded up: no result may exceed 1
        upper = np.where(measured, np.minimum(tops, cap), cap)
    else:
        msg = "no plane has intensities above the agarose level: the volume is not divided"
        warnings.warn(msg, N4flowWarning, stacklevel=2)
        span, upper = np.float32(1), np.where(measured, tops, np.float32(np.inf))
    return PlaneRange(lower, upper.astype(np.float32), float(span), levels.source, levels.confidence)


@takes_arrays
def normalize_volume(
    vol: ArrayLike,
    agarose_mask: ArrayLike,
    percentile_max: float = PERCENTILE_MAX,
    min_contrast_fraction: float = MIN_CONTRAST,
    *,
    span_percentile: float = 100.0,
    sections: SectionsLike = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Put the agarose at exactly 0 and the volume into [0, 1], keeping brightness between sections.

    Per plane: clip at the percentile and at the agarose median, subtract the median; then divide the volume by the
    largest span of a plane. A plane without agarose borrows its level from its neighbours; none anywhere means level 0
    and a warning, never NaN. Exact zeros (mosaic padding) and non-finite voxels count for nothing and stay as they are.

    Parameters
    ----------
    vol : (Z, Y, X) array
        NumPy, CuPy or dask; any real type; never modified. A dask array stays lazy: its statistics become part of the
        graph, as one more pass over the array.
    agarose_mask : (Y, X) or (Z, Y, X) mask
        True (or above 0) in agarose.
    percentile_max : float
        Percentile (0 to 100) of the valid voxels of a plane.
    min_contrast_fraction : float
        Share (0 to 1) of the largest span that the divisor is at least. It matters only with a `span_percentile` below
        100, where many planes of next to no contrast could make the divisor small; the largest span needs no such
        limit.
    span_percentile : float
        Percentile (0 to 100) of the planes' spans that is the divisor; 100 is the largest. With a lower one, single
        planes that are far brighter do not darken the rest; they are clipped at 1, and lose what is brighter.
    sections : section table or count, optional
        Sections whose flag keeps them out of the estimate, and whose depth profile a borrowed level follows. Each
        plane by itself when left out.

    Returns
    -------
    normalized : (Z, Y, X) float32 array
    background : (Z,) float32 array
        Agarose level of each plane. Both are of the kind of `vol`; background is NumPy for NumPy and CuPy input.
    """
    block, options = as_block(vol), (sections, percentile_max, min_contrast_fraction, span_percentile)
    if is_dask(block):
        import dask.array as da

        correction = estimate_lazily(estimate_plane_range, block, *options, agarose=agarose_mask)
        return apply_lazily(block, correction), da.from_delayed(correction.lower, block.shape[:1], dtype=np.float32)
    correction = estimate_plane_range(plane_histograms(block, agarose=agarose_mask), *options)
    return correction.apply(block.astype(np.float32), Where(0, 0, 0, tuple(block.shape))), correction.lower


@takes_arrays
def compute_scale_factors(
    vol: ArrayLike,
    n_serial_slices: SectionsLike,
    smooth_sigma: float,
    percentile: float,
    min_scale: float,
    max_scale: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Return a factor for each plane that takes slow drift out of the sections' brightness.

    The metric of a section is a percentile of its non-zero voxels; the metrics are smoothed by a Gaussian along the
    sections; the factor is the median of the smoothed metrics over the smoothed metric, clamped. A section with next to
    no voxels, or flagged, has metric 0 and no weight; it gets the factor of its neighbours.

    Parameters
    ----------
    vol : (Z, Y, X) array
        NumPy or CuPy, any real type.
    n_serial_slices : int, section table or None
        Count of sections (equal split, remainder spread), table, or None: each plane by itself.
    smooth_sigma : float
        Sigma of the Gaussian in sections; 0 for none.
    percentile : float
        0 to 100.
    min_scale, max_scale : float
        Bounds of the factor, dimensionless.

    Returns
    -------
    scale_factors : (Z,) float32 array
    raw_metrics, smoothed : (number of sections,) float64 arrays
    boundaries : list of int
        First plane of each section.

    Raises
    ------
    InputError
        A percentile outside 0 to 100 or bounds in the wrong order.
    """
    from n4flow.corrections.plane_gain import smooth_along

    block = as_block(vol)
    if not 0 <= percentile <= 100 or not 0 < min_scale <= max_scale:
        msg = f"expected percentile 0 to 100 and 0 < min_scale <= max_scale, got {percentile}, {min_scale}, {max_scale}"
        raise InputError(msg)
    table = SectionTable.coerce(n_serial_slices, block.shape[0])
    histograms = plane_histograms(block)
    pairs = [histograms.pooled(range(s.z_start, s.z_stop)) for s in table]
    counts = np.array([n.sum() for _v, n in pairs])
    enough = np.array([s.usable for s in table]) & (counts >= least_voxels(counts))
    raw = np.array(
        [weighted_percentile(*pair, percentile) if ok else 0.0 for pair, ok in zip(pairs, enough, strict=True)]
    )
    smoothed = smooth_along(raw, raw > 0, smooth_sigma)
    known = smoothed > 0
    scale = np.ones(len(table))
    if known.any():
        scale[known] = np.median(smoothed[known]) / smoothed[known]
    per_plane = np.clip(scale, min_scale, max_scale)[table.section_of_plane]
    return per_plane.astype(np.float32), raw, smoothed, [s.z_start for s in table]
