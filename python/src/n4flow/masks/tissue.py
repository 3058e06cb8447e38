"""The tissue mask, by Otsu's threshold of smoothed intensities.

Smoothing is a normalised convolution over valid voxels, s = G * (w v) / G * w, so that neither mosaic padding (exact
zeros) nor the border of the volume lowers intensities, and padding that is added changes no voxel of a mask.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from n4flow.compute.arrays import array_module, as_block, probe_gpu, takes_arrays
from n4flow.compute.gpu import on_device, run_on_gpu
from n4flow.compute.threads import run_tasks
from n4flow.errors import N4flowWarning
from n4flow.masks.morphology import close_along_z, close_plane
from n4flow.masks.otsu import Scale, Split, choose_scale, otsu_split
from n4flow.masks.packed_mask import PackedMask
from n4flow.masks.smoothed_sections import SectionHistograms, Smoother, survey
from n4flow.sections import SectionsLike, SectionTable
from n4flow.statistics.shrunken import ShrunkenFiles, ShrunkenVolume

FEW_VOXELS = 100  # A section with fewer valid voxels takes the threshold of the volume.
GPU_BLOCKS = 8  # Blocks of `compute.gpu` that are smoothed at a time; the planes around them are smoothed twice.
CONTRAST_SHARE = 0.6  # A section's own threshold needs at least this share of the log contrast of the volume.


@dataclass(frozen=True)
class TissueMask:
    """A tissue mask, and the thresholds of the sections it was made with.

    Parameters
    ----------
    mask : (Z, Y, X) bool array or PackedMask
        Tissue; packed for a shrunken volume.
    thresholds : tuple of float or None
        Threshold of each section, in the intensity unit of the volume; None for a section without one.
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

    A section keeps its own threshold when the threshold of the volume lies between its classes, or when its contrast (a
    ratio, so that dim sections are not at a disadvantage) is at least `CONTRAST_SHARE` of that of the volume.
    """
    if own is None or volume is None:
        return None, "constant" if count else "empty"
    if volume.one_class:
        return None, "one_class"
    between = own.dark < volume.threshold < own.bright
    if count >= FEW_VOXELS and (between or own.contrast >= CONTRAST_SHARE * volume.contrast > 0):
        return own.threshold, "own"
    return volume.threshold, "volume"


def tissue_mask_with_levels(
    vol: Any,
    sections: Any,
    *,
    smoothing_sigma: float = 2.0,
    closing_radius: int = 3,
    z_closing_sections: int = 2,
    smoothing_sigma_z: float = 1.0,
    gpu_planes: int | None = None,
) -> TissueMask:
    """Return the tissue mask with its thresholds; `compute_tissue_mask` says how it is found.

    Parameters
    ----------
    vol : (Z, Y, X) array, ShrunkenVolume or ShrunkenFiles
        Sigma and radius are in its voxels. An array is NumPy or CuPy. A shrunken volume weights its voxels by their
        shares of valid ones.
    sections : section table, count or None
        A flagged section gets a mask of its own, and does not enter the threshold of the volume.
    gpu_planes : int, optional
        Compute an array in host memory on the GPU, this many planes at a time; by default on the device of the array.
    """
    if not isinstance(vol, (ShrunkenVolume, ShrunkenFiles)):
        vol = as_block(vol)
    table = SectionTable.coerce(sections, vol.shape[0])
    smoother = Smoother(vol, (smoothing_sigma_z, smoothing_sigma, smoothing_sigma), gpu_planes)
    counted = SectionHistograms(smoother, table, Scale())
    splits, voxels, group = survey(counted)
    scale = choose_scale(map(counted.pairs, group.members), group.together, group.separability.share)
    if scale.floor is not None:
        smoother.forget()
        counted = SectionHistograms(smoother, table, scale)  # replaces those of the linear scale
        splits, voxels, group = survey(counted, set(group.members))
    volume = otsu_split(*group.together, scale=scale)
    cuts = [_cut(split, volume, count) for split, count in zip(splits, voxels, strict=True)]
    filled = smoother.filled()
    if volume is None and 0 < sum(voxels) < (filled.stop - filled.start) * math.prod(vol.shape[1:]):
        # one value among zeros: the zeros are the background
        cuts = [(None, "one_class" if origin == "constant" else origin) for _none, origin in cuts]
    if volume is None or volume.one_class:
        what = (
            "shows one class of intensities: every valid voxel counts as tissue; give a mask if there is agarose"
            if any(origin == "one_class" for _threshold, origin in cuts)
            else "has no valid voxels, or one value in each section: the tissue mask is empty; give a mask"
        )
        msg = f"the volume {what}"
        warnings.warn(msg, N4flowWarning, stacklevel=2)
    mask = PackedMask.empty(vol.shape) if smoother.streamed else array_module(vol).zeros(vol.shape, bool)
    for section, (threshold, origin) in zip(table, cuts, strict=True):
        if threshold is not None or origin == "one_class":
            for z, part in smoother.runs(section, scale):
                mask[z : z + len(part)] = _inside(smoother, part, threshold, int(closing_radius))
    return TissueMask(
        close_along_z(mask, table, int(z_closing_sections), filled),
        tuple(None if threshold is None else scale.back(threshold) for threshold, _origin in cuts),
        tuple(origin for _threshold, origin in cuts),
        None if volume is None else scale.back(volume.threshold),
        tuple(None if split is None else scale.back(split.dark) for split in splits),
        tuple(None if split is None else scale.back(split.bright) for split in splits),
        scale.name,
    )


def _inside(smoother: Smoother, smooth: Any, threshold: float | None, radius: int) -> Any:
    """Return the closed mask of smoothed planes: voxels above the threshold or, without one, every valid voxel."""

    def find(z: int) -> Any:
        plane = smoother.take(smooth[z])
        above = plane != 0 if threshold is None else (plane > threshold) & (plane != 0)
        return smoother.give(close_plane(above, radius))

    planes = run_tasks(find, range(len(smooth))) if smoother.on_host else [find(z) for z in range(len(smooth))]
    return array_module(planes[0]).stack(planes)


@takes_arrays
def compute_tissue_mask(
    vol: ArrayLike,
    smoothing_sigma: float = 2.0,
    n_serial_slices: SectionsLike = 1,
    closing_radius: int = 3,
    z_closing_sections: int = 2,
    smoothing_sigma_z: float = 1.0,
    use_gpu: bool = False,
) -> NDArray[np.bool_]:
    """Return the tissue mask.

    The volume is smoothed (Gaussian, within each section); each section is cut at the Otsu threshold of its non-zero
    smoothed voxels, voxel by voxel, so that the mask of an oblique cut moves from plane to plane; holes are filled and
    gaps closed in every plane, then along Z. Where shading blurs the classes, the log intensity is smoothed and
    thresholded. Otsu's method splits any section in two, so its threshold is taken only where the section has the
    contrast of the volume, and else that of the volume (see `TissueMask`).

    Parameters
    ----------
    vol : (Z, Y, X) array
        NumPy or CuPy, any real type; exact zeros and non-finite voxels count for nothing.
    smoothing_sigma, smoothing_sigma_z : float
        Sigma of the Gaussian in plane and along Z, voxels.
    n_serial_slices : int or section table
        Count of sections (equal split, remainder spread) or the table itself.
    closing_radius : int
        Radius of the disk that closes each plane, voxels; 0 for none. The mask keeps its voxels at the border.
    z_closing_sections : int
        Gaps along Z of up to this many sections are filled; 0 for none. A volume of one section is not closed along Z.
    use_gpu : bool
        Compute on the GPU also when `vol` is in host memory. Without a working GPU this is a GpuError.

    Returns
    -------
    (Z, Y, X) bool array of the kind of `vol`.
    """
    block = as_block(vol)
    find = partial(
        tissue_mask_with_levels,
        block,
        n_serial_slices,
        smoothing_sigma=smoothing_sigma,
        closing_radius=closing_radius,
        z_closing_sections=z_closing_sections,
        smoothing_sigma_z=smoothing_sigma_z,
    )
    if use_gpu:
        probe_gpu()
    if on_device(block):
        found = run_on_gpu(lambda _voxels: find(), release=False)
    elif use_gpu:
        plane = block.shape[1] * block.shape[2]
        found = run_on_gpu(lambda voxels: find(gpu_planes=max(1, GPU_BLOCKS * voxels // plane)), release=True)
    else:
        found = find()
    mask: NDArray[np.bool_] = found.mask
    return mask
