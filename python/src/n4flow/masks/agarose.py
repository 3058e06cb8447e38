"""The agarose mask and the agarose level of each section, from the mean projection of a volume."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from n4flow.compute.arrays import array_module, as_block, takes_arrays
from n4flow.compute.threads import available_threads, parallel_planes, reuse_threads, useful_threads
from n4flow.errors import N4flowWarning
from n4flow.masks.agarose_levels import SOURCES, fill_levels, has_evidence
from n4flow.masks.morphology import Norms, smooth_planes, smooth_valid
from n4flow.masks.otsu import Scale, choose_scale, otsu_split
from n4flow.masks.packed_mask import PackedMask
from n4flow.sections import SectionTable, filled_planes
from n4flow.statistics.measure import plane_histograms
from n4flow.statistics.shrunken import Shrunken, ShrunkenFiles, ShrunkenVolume, runs


@takes_arrays
def get_agarose_mask(vol: Any, smoothing_sigma: float = 1.0) -> tuple[NDArray[np.bool_], float]:
    """Return where the agarose around the tissue is, and the threshold.

    The mean along Z of the valid voxels is smoothed and cut by Otsu; the dark side is agarose. A position that has
    only mosaic padding is neither agarose nor tissue. A projection of one class (tissue fills the field, or there is
    none) has no agarose: the mask is all False, the threshold is that of Otsu, and a warning says so.

    Parameters
    ----------
    vol : (Z, Y, X) array, ShrunkenVolume or ShrunkenFiles
        NumPy or CuPy, any real type. Of a shrunken volume, the means.
    smoothing_sigma : float
        Sigma of the Gaussian, voxels.

    Returns
    -------
    agarose_mask : (Y, X) bool array of the kind of `vol`
    threshold : float
        In the intensity unit of `vol`.
    """
    mean = projection(vol if isinstance(vol, (ShrunkenVolume, ShrunkenFiles)) else as_block(vol))
    xp = array_module(mean)
    scale = Scale()
    smooth = _smooth(mean, smoothing_sigma)
    pairs = plane_histograms(smooth[None]).pairs(0)
    split = otsu_split(*pairs)
    if (
        split is not None and split.one_class
    ):  # little agarose beside much tissue may show on the logarithmic scale only
        scale = choose_scale([pairs], pairs, split.separability)
        smooth = _smooth(scale.forward(mean), smoothing_sigma)
        split = otsu_split(*plane_histograms(smooth[None]).pairs(0), scale=scale)
    threshold = scale.back(split.threshold) if split else float(pairs[0][0]) if len(pairs[0]) else 0.0
    if split is None or split.one_class:
        msg = "the mean projection shows no dark side: no agarose is found; give an agarose mask if there is some"
        warnings.warn(msg, N4flowWarning, stacklevel=2)
        return xp.zeros(smooth.shape, bool), threshold
    return (smooth < split.threshold) & (smooth != 0), threshold


def _smooth(mean: Any, sigma: float) -> Any:
    """Return the Gaussian mean of the valid values of a plane (Y, X) around each, float32; 0 at the others."""
    if array_module(mean) is not np:
        return smooth_valid(mean, (sigma, sigma))
    return smooth_planes(mean.astype(np.float32)[None], (0.0, sigma, sigma), None, slice(0, 1), Norms())[0]


@reuse_threads()
def projection(vol: Any) -> Any:
    """Return the mean along Z of the valid voxels of a (Z, Y, X) array or shrunken volume; 0 where there are none.

    It is a float64 array (Y, X) on the device of `vol`.
    """
    shrunken = isinstance(vol, (ShrunkenVolume, ShrunkenFiles))
    xp = np if shrunken else array_module(vol)
    total, gone = xp.zeros(vol.shape[1:], xp.float64), xp.zeros(vol.shape[1:], xp.float32)
    for start, stop in runs(0, vol.shape[0]):
        planes = vol.part(start, stop).mean if shrunken else vol[start:stop]
        if xp is np:
            _add_valid(planes, total.reshape(-1), gone.reshape(-1))
            continue
        for plane in planes:
            valid = xp.isfinite(plane) & (plane != 0)
            total += xp.where(valid, plane, 0)
            gone += ~valid
    total /= xp.maximum(vol.shape[0] - gone, 1)
    return total


def _add_valid(planes: np.ndarray, total: np.ndarray, gone: np.ndarray) -> None:
    """Add planes (z, Y, X) to the sums of their valid voxels and the numbers of the others (Y * X,), in order of Z."""
    from n4flow.statistics import block_mean_kernels as kernels

    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is not valid
        voxels, n = np.ascontiguousarray(planes, np.float32).reshape(-1), total.size

    def add(start: int, stop: int) -> None:
        kernels.add_lines(voxels, n, start, stop, total, gone)

    if useful_threads(available_threads(), voxels.size) > 1:
        parallel_planes(add, n)
    else:
        add(0, n)


def agarose_levels(
    shrunken: Shrunken, agarose: np.ndarray, sections: Any, tissue: np.ndarray | PackedMask | None = None
) -> list[dict[str, Any]]:
    """Return the agarose level of each section of a shrunken volume, for the report.

    Parameters
    ----------
    shrunken : ShrunkenVolume or ShrunkenFiles
    agarose : (y, x) bool array
        Agarose mask on the shrunken grid.
    sections : section table, count or None
    tissue : (Z, y, x) bool array or PackedMask, optional
        Tissue mask on the shrunken grid; what it covers is not agarose.

    Returns
    -------
    list of dict
        section (id), level (median of the section's planes, in the intensity unit of the volume), source (own,
        borrowed or unknown) and confidence (0 to 1).
    """
    table = SectionTable.coerce(sections, shrunken.shape[0])
    medians, counts, tops = (np.zeros(shrunken.shape[0]) for _each in range(3))
    for start, stop in runs(0, shrunken.shape[0]):
        part, planes = shrunken.part(start, stop).mean, slice(start, stop)
        histograms = plane_histograms(part, None if tissue is None else tissue[planes], agarose)
        medians[planes], counts[planes], bright = histograms.per_plane(
            ("median", "agarose"), ("count", "agarose"), ("percentile", 99.9)
        )
        tops[planes] = np.nan_to_num(bright)
    evidence = has_evidence(medians, counts, tops, table.usable_planes)
    filled = filled_planes(shrunken.planes["n_valid"])
    levels = fill_levels(medians, evidence, table, filled)
    edges = table.edges(filled).tolist()
    # a section without valid voxels has the level that was given to its planes
    spans = [slice(*span) if span[0] < span[1] else s.planes for s, span in zip(table, pairwise(edges), strict=True)]
    return [
        {
            "section": section.id,
            "level": float(np.median(levels.values[span])),
            "source": SOURCES[int(levels.source[span].min())],
            "confidence": float(levels.confidence[span].mean()),
        }
        for section, span in zip(table, spans, strict=True)
    ]
