"""Where is tissue, where is agarose: masks by Otsu's threshold on smoothed intensities.

Smoothing is a normalised convolution over valid voxels, s = G * (w v) / G * w, so that mosaic padding (exact zeros) and
the border of the volume pull nothing down, and adding padding changes no voxel of a mask.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from n4flow.arrays import array_module, probe_gpu, to_numpy
from n4flow.bins import pool
from n4flow.errors import InputError, N4flowWarning
from n4flow.fit.gpu_device import guarded, on_device
from n4flow.levels import SOURCES, fill_levels, has_evidence
from n4flow.morphology import close_along_z, close_plane, smooth_valid
from n4flow.otsu import Scale, Split, choose_scale, otsu_cut, otsu_split
from n4flow.planes import as_block
from n4flow.sections import SectionTable
from n4flow.statistics import PlaneHistograms, ShrunkenVolume, plane_histograms

FEW_VOXELS = 100  # a section with fewer valid voxels takes the threshold of the volume
SMOOTH_REACH = 4.0  # of the Gaussian, in sigma
GPU_BLOCKS = 8  # of `gpu_device`, that are smoothed at a time: planes around them are smoothed twice
CONTRAST_SHARE = 0.6  # of the volume's log contrast between tissue and background that a section must show


@dataclass(frozen=True)
class TissueMask:
    """A tissue mask and what led to it, section by section.

    Parameters
    ----------
    mask : (Z, Y, X) bool array
        Tissue.
    thresholds : tuple of float or None
        Threshold each section was cut at, in the intensity unit of the volume; None where nothing was cut.
    origins : tuple of str
        `own`: the section's Otsu threshold. `volume`: the threshold of the whole volume, because the section's own
        would have split agarose or tissue within itself. `one_class`: the volume shows one class (or one value beside
        zeros), every valid voxel is tissue. `constant`, `empty`: one value or no valid voxel, nothing is tissue.
    volume_threshold : float or None
        Otsu's threshold of all usable sections together.
    dark, bright : tuple of float or None
        Mean smoothed intensity of the two sides of each section's own threshold.
    scale : str
        `linear` or `log`: the scale on which intensities were smoothed and split.
    """

    mask: Any
    thresholds: tuple[float | None, ...]
    origins: tuple[str, ...]
    volume_threshold: float | None
    dark: tuple[float | None, ...]
    bright: tuple[float | None, ...]
    scale: str


def _cut(own: Split | None, volume: Split | None, count: int) -> tuple[float | None, str]:
    """Return a section's threshold and where it comes from.

    The section's own split is believed when the threshold of the volume lies between its classes, or when its
    contrast (a ratio, so that a dim section is not held against itself) is a good part of the volume's.
    """
    if own is None or volume is None:
        return None, "constant" if count else "empty"
    if volume.one_class:
        return None, "one_class"
    between = own.dark < volume.threshold < own.bright
    if count >= FEW_VOXELS and (between or own.contrast >= CONTRAST_SHARE * volume.contrast > 0):
        return own.threshold, "own"
    return volume.threshold, "volume"


@dataclass(frozen=True)
class _Place:
    """Where planes are computed: where the volume lies, or on the GPU in runs of at most `planes`."""

    planes: int | None = None

    def take(self, array: Any) -> Any:
        """Return an array there."""
        if self.planes is None:
            return array
        import cupy

        return cupy.asarray(array)

    def give(self, array: Any) -> Any:
        """Return a result where the volume lies."""
        return array if self.planes is None else to_numpy(array)

    def runs(self, z_start: int, z_stop: int) -> list[tuple[int, int]]:
        """Cut planes into runs."""
        step = self.planes or z_stop - z_start
        return [(z, min(z + step, z_stop)) for z in range(z_start, z_stop, step)]


def _smooth_sections(
    vol: Any, table: SectionTable, sigmas: tuple[float, float, float], weights: Any, scale: Scale, place: _Place
) -> tuple[Any, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the smoothed volume on `scale`, 0 where it is not valid, and each section's pairs of value and count."""
    xp = array_module(vol)
    smooth = xp.empty(vol.shape, xp.float32)
    pairs = []
    margin = int(SMOOTH_REACH * sigmas[0] + 0.5)
    for section in table:
        histograms = []
        for start, stop in place.runs(section.z_start, section.z_stop):
            # along Z within the section only: its neighbours have another gain, and a missing one has none
            around = slice(max(section.z_start, start - margin), min(section.z_stop, stop + margin))
            weight = None if weights is None else place.take(weights[around])
            part = smooth_valid(scale.forward(place.take(vol[around])), sigmas, weight)
            part = part[start - around.start : stop - around.start]
            histograms.append(plane_histograms(part, z_start=start))
            smooth[start:stop] = place.give(part)
        counted = PlaneHistograms.concatenate(histograms)
        pairs.append(counted.pooled(range(section.z_start, section.z_stop)))
    return smooth, pairs


def _pool(pairs: list[tuple[np.ndarray, np.ndarray]], chosen: list[int]) -> tuple[np.ndarray, np.ndarray]:
    if not chosen:
        return pool(np.empty(0, np.float32), np.empty(0, np.int64))
    return pool(*(np.concatenate([pairs[i][part] for i in chosen]) for part in (0, 1)))


def tissue_mask_with_levels(
    vol: Any,
    sections: Any,
    *,
    smoothing_sigma: float = 2.0,
    closing_radius: int = 3,
    z_closing_sections: int = 2,
    smoothing_sigma_z: float = 1.0,
    weights: Any = None,
    gpu_planes: int | None = None,
) -> TissueMask:
    """Return the tissue mask with its thresholds; `compute_tissue_mask` says how it is found.

    Parameters
    ----------
    vol : (Z, Y, X) array
        A volume or a `ShrunkenVolume.mean`; sigma and radius are in its voxels. NumPy or CuPy.
    sections : section table, count or None
        A flagged section gets a mask of its own, and does not enter the threshold of the volume.
    weights : (Z, Y, X) array, optional
        `ShrunkenVolume.valid`.
    gpu_planes : int, optional
        Compute an array in host memory on the GPU, so many planes at a time; by default where it lies.
    """
    vol, place = as_block(vol), _Place(gpu_planes)
    table = SectionTable.coerce(sections, vol.shape[0])
    sigmas = (smoothing_sigma_z, smoothing_sigma, smoothing_sigma)
    smooth, pairs = _smooth_sections(vol, table, sigmas, weights, Scale(), place)
    counted = [i for i, pair in enumerate(pairs) if otsu_split(*pair) is not None]
    counted = [i for i in counted if table[i].usable] or counted
    scale = choose_scale([pairs[i] for i in counted], _pool(pairs, counted))
    if scale.floor is not None:
        smooth, pairs = _smooth_sections(vol, table, sigmas, weights, scale, place)
    splits = [otsu_split(*pair, scale=scale) for pair in pairs]
    volume = otsu_split(*_pool(pairs, counted), scale=scale)
    cuts = [_cut(split, volume, int(n.sum())) for split, (_values, n) in zip(splits, pairs, strict=True)]
    if volume is None and 0 < sum(int(n.sum()) for _values, n in pairs) < vol.size:
        # one value, and zeros around it: they are all the background there is
        cuts = [(None, "one_class" if origin == "constant" else origin) for _none, origin in cuts]
    if volume is None or volume.one_class:
        what = (
            "shows one class of intensities: every valid voxel counts as tissue; give a mask if there is agarose"
            if any(origin == "one_class" for _threshold, origin in cuts)
            else "has no valid voxels, or one value in each section: the tissue mask is empty; give a mask"
        )
        msg = f"the volume {what}"
        warnings.warn(msg, N4flowWarning, stacklevel=2)
    xp = array_module(vol)
    mask = xp.zeros(vol.shape, bool)
    for section, (threshold, origin) in zip(table, cuts, strict=True):
        planes = smooth[section.planes]
        if origin == "one_class":
            mask[section.planes] = planes != 0
        elif threshold is not None:
            mask[section.planes] = (planes > threshold) & (planes != 0)
        for z in range(section.z_start, section.z_stop):
            mask[z] = place.give(close_plane(place.take(mask[z]), int(closing_radius)))
    return TissueMask(
        close_along_z(mask, table, int(z_closing_sections)),
        tuple(None if threshold is None else scale.back(threshold) for threshold, _origin in cuts),
        tuple(origin for _threshold, origin in cuts),
        None if volume is None else scale.back(volume.threshold),
        tuple(None if split is None else scale.back(split.dark) for split in splits),
        tuple(None if split is None else scale.back(split.bright) for split in splits),
        scale.name,
    )


def compute_tissue_mask(
    vol: Any,
    smoothing_sigma: float = 2.0,
    n_serial_slices: Any = 1,
    closing_radius: int = 3,
    z_closing_sections: int = 2,
    smoothing_sigma_z: float = 1.0,
    use_gpu: bool = False,
) -> Any:
    """Return where tissue is.

    The volume is smoothed (Gaussian, within each section); each section is cut at the Otsu threshold of its non-zero
    smoothed voxels, voxel by voxel, so that the mask of an oblique cut moves from plane to plane; holes are filled and
    gaps closed in every plane, then along Z. Where shading blurs the classes, smoothing and threshold are those of the
    log intensity. Otsu splits any section in two, so its threshold is believed only when
    the section shows the contrast of the volume; else the volume's threshold is taken (see `TissueMask`).

    Parameters
    ----------
    vol : (Z, Y, X) array
        NumPy or CuPy, any real type; exact zeros and non-finite voxels count for nothing.
    smoothing_sigma, smoothing_sigma_z : float
        Sigma of the Gaussian in plane and along Z, voxels.
    n_serial_slices : int or section table
        Count of sections (equal split, remainder spread) or the table itself.
    closing_radius : int
        Radius of the disk that closes each plane, voxels; 0 for none. Nothing is taken from the mask at the border.
    z_closing_sections : int
        Gaps along Z of up to so many sections are bridged; 0 for none. A volume of one section is left alone.
    use_gpu : bool
        Compute on the GPU also when `vol` is in host memory. Without a working GPU that is a GpuError, not a change of
        device.

    Returns
    -------
    (Z, Y, X) bool array of the kind of `vol`.
    """
    vol = as_block(vol)

    def find(planes: int | None) -> TissueMask:
        return tissue_mask_with_levels(
            vol,
            n_serial_slices,
            smoothing_sigma=smoothing_sigma,
            closing_radius=closing_radius,
            z_closing_sections=z_closing_sections,
            smoothing_sigma_z=smoothing_sigma_z,
            gpu_planes=planes,
        )

    if use_gpu:
        probe_gpu()
    if on_device(vol):
        return guarded(lambda _voxels: find(None), release=False).mask
    if use_gpu:
        plane = vol.shape[1] * vol.shape[2]
        return guarded(lambda voxels: find(max(1, GPU_BLOCKS * voxels // plane)), release=True).mask
    return find(None).mask


def otsu_mask(volume: Any, nbins: int = 200) -> Any:
    """Return the voxels above Otsu's threshold of the whole volume, the foreground mask of `n4` without one.

    The histogram spans the finite voxels from the lowest to the highest in `nbins` bins, zeros included; the threshold
    is the centre of the last dark bin. A volume of one value has no foreground.

    Parameters
    ----------
    volume : array of two or three axes
        NumPy or CuPy, any real type.
    nbins : int
        Bins of the histogram.

    Returns
    -------
    bool array of the shape and kind of `volume`.
    """
    volume = volume if hasattr(volume, "dtype") else np.asarray(volume)
    xp = array_module(volume)
    if nbins < 2:
        msg = f"nbins must be at least 2, got {nbins}"
        raise InputError(msg)
    values = volume.astype(xp.float32)
    finite = xp.isfinite(values)
    if not finite.any():
        return xp.zeros(volume.shape, bool)
    low, high = float(values[finite].min()), float(values[finite].max())  # synchronize
    if not high > low:
        return xp.zeros(volume.shape, bool)
    counts, edges = (to_numpy(a) for a in xp.histogram(values[finite], nbins, (low, high)))  # synchronize
    centres = (edges[:-1] + edges[1:]) / 2
    return finite & (values > np.float32(centres[otsu_cut(counts, centres)]))


def get_agarose_mask(vol: Any, smoothing_sigma: float = 1.0) -> tuple[Any, float]:
    """Return where the agarose around the tissue is, and the threshold.

    The mean along Z of the valid voxels is smoothed and cut by Otsu; the dark side is agarose. A position that has
    only mosaic padding is neither agarose nor tissue. A projection of one class (tissue fills the field, or there is
    none) has no agarose: the mask is all false, the threshold is what Otsu would have taken, and a warning says so.

    Parameters
    ----------
    vol : (Z, Y, X) array
        NumPy or CuPy, any real type.
    smoothing_sigma : float
        Sigma of the Gaussian, voxels.

    Returns
    -------
    agarose_mask : (Y, X) bool array of the kind of `vol`
    threshold : float
        In the intensity unit of `vol`.
    """
    vol = as_block(vol)
    xp = array_module(vol)
    total = xp.zeros(vol.shape[1:], xp.float64)
    count = xp.zeros(vol.shape[1:], xp.int64)
    for plane in vol:  # plane by plane: the memory of one plane
        valid = xp.isfinite(plane) & (plane != 0)
        total += xp.where(valid, plane, 0)
        count += valid
    mean = xp.where(count > 0, total / xp.maximum(count, 1), 0)
    scale = Scale()
    smooth = smooth_valid(mean, (smoothing_sigma, smoothing_sigma))
    pairs = plane_histograms(smooth[None]).pairs(0)
    split = otsu_split(*pairs)
    if split is not None and split.one_class:  # a little agarose beside much tissue shows on the logarithmic scale
        scale = choose_scale([pairs], pairs)
        smooth = smooth_valid(scale.forward(mean), (smoothing_sigma, smoothing_sigma))
        split = otsu_split(*plane_histograms(smooth[None]).pairs(0), scale=scale)
    threshold = scale.back(split.threshold) if split else float(pairs[0][0]) if len(pairs[0]) else 0.0
    if split is None or split.one_class:
        msg = "the mean projection shows no dark side: no agarose is found; give an agarose mask if there is some"
        warnings.warn(msg, N4flowWarning, stacklevel=2)
        return xp.zeros(smooth.shape, bool), threshold
    return (smooth < split.threshold) & (smooth != 0), threshold


def agarose_levels(
    shrunken: ShrunkenVolume, agarose: np.ndarray, sections: Any, tissue: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Return the agarose level of each section of a shrunken volume, for the report.

    Parameters
    ----------
    shrunken : ShrunkenVolume
    agarose : (y, x) bool array
        Agarose mask on the shrunken grid.
    sections : section table, count or None
    tissue : (Z, y, x) bool array, optional
        Tissue mask on the shrunken grid; what it covers is not agarose.

    Returns
    -------
    list of dict
        section (id), level (median of the section's planes, in the intensity unit of the volume), source (own,
        borrowed or unknown) and confidence (0 to 1).
    """
    table = SectionTable.coerce(sections, shrunken.mean.shape[0])
    histograms = plane_histograms(shrunken.mean, tissue, agarose)
    medians = histograms.per_plane("median", "agarose")
    tops = np.nan_to_num(histograms.per_plane("percentile", "all", 99.9))
    evidence = has_evidence(medians, histograms.per_plane("count", "agarose"), tops, table.usable_planes)
    levels = fill_levels(medians, evidence, table)
    return [
        {
            "section": section.id,
            "level": float(np.median(levels.values[section.planes])),
            "source": SOURCES[int(levels.source[section.planes].min())],
            "confidence": float(levels.confidence[section.planes].mean()),
        }
        for section in table
    ]


def expand_mask(mask_small: Any, k: int, z: slice, y: slice, x: slice, out: np.ndarray | None = None) -> Any:
    """Return a block of a mask at full resolution: voxel i in plane belongs to shrunken voxel i // k.

    Parameters
    ----------
    mask_small : (Z, y, x) bool array
        Mask on the grid shrunken by `k` in plane.
    z, y, x : slice
        The block, in voxels at full resolution, with start and stop.
    out : bool array, optional
        Of the block's shape; written and returned, for a NumPy mask.
    """
    xp = array_module(mask_small)
    if xp is np:
        from n4flow import kernels

        out = np.empty([part.stop - part.start for part in (z, y, x)], bool) if out is None else out
        kernels.expand_rows(mask_small[z].view(np.uint8), k, y.start, x.start, out.view(np.uint8))
        return out
    rows, columns = (xp.arange(part.start, part.stop) // k for part in (y, x))
    return mask_small[z][:, rows[:, None], columns[None, :]]
