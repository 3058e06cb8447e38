"""One gain for each plane that takes jitter out of the tissue brightness along Z.

m_z is the mean of the tissue of plane z. The target is its Gaussian along Z over the planes that have a mean,
t_z = sum_k G(k) w_(z+k) m_(z+k) / sum_k G(k) w_(z+k) with w = 1 for those planes and 0 for the rest (normalised
convolution), and the gain is t_z / m_z. Slow change along Z, which anatomy makes, survives.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from n4flow.compute.arrays import LARGEST, SMALLEST, array_module, as_block, as_mask, is_dask, takes_arrays, to_numpy
from n4flow.compute.threads import parallel_planes
from n4flow.corrections.base import ArgumentsOfRun, Correction, Where, map_through, misfits
from n4flow.corrections.dask import apply_lazily, estimate_lazily
from n4flow.errors import InputError, N4flowWarning
from n4flow.sections import SectionsLike, SectionTable, filled_planes
from n4flow.statistics.histograms import Distributions
from n4flow.statistics.measure import plane_means

MIN_TISSUE_VOXELS = 100  # A plane with fewer keeps its brightness.
LEAST_PLANES = 3  # With fewer measured planes there is no trend along Z.


@dataclass
class PlaneGain(Correction):
    """Multiply the tissue of each plane by its gain.

    Parameters
    ----------
    gain : (Z,) float32 array
        Dimensionless; exactly 1 where a plane is left alone.
    measured : (Z,) bool array
        Planes whose tissue was measured; the others have gain 1.
    sigma : float
        Sigma of the Gaussian, planes.
    share : float
        Of the rms of the gains that smoothing asks for, what is applied; see `proof`.
    """

    kind: ClassVar[str] = "plane_gain"
    title: ClassVar[str] = "brightness of tissue smoothed along Z"
    needs_tissue: ClassVar[bool] = True
    fused: ClassVar[str] = "gain"
    is_map: ClassVar[bool] = True
    gain: np.ndarray
    measured: np.ndarray
    sigma: float
    share: float = 1.0

    def apply(self, block: Any, where: Where) -> Any:
        """Return the block with its tissue (`where.tissue`) multiplied; everything else is untouched. In place."""
        _stop, found = self.fused_arguments(block, where)(0, len(block))
        if found is None:
            return block
        (gains, tissue), xp = found, array_module(block)
        if xp is not np:
            return xp.where(tissue, block * gains[:, None, None], block)
        from n4flow.corrections import kernels

        block = np.ascontiguousarray(block, np.float32)
        parallel_planes(lambda a, b: kernels.plane_gain(block[a:b], tissue[a:b], gains[a:b]), len(block))
        return block

    def fused_arguments(self, block: Any, where: Where) -> ArgumentsOfRun:
        """See `Correction.fused_arguments`: gains and tissue; no mask is needed where every gain is 1."""
        gains, xp = self.gain[where.z : where.z + block.shape[0]], array_module(block)
        if (gains == 1).all():
            return lambda _start, stop: (stop, None)
        if where.tissue is None:
            msg = "the plane gain acts on tissue alone: give the block's tissue mask"
            raise InputError(msg)
        tissue = as_mask(where.tissue, block.shape, "tissue mask")
        if xp is np:
            tissue = np.ascontiguousarray(to_numpy(tissue))
        else:
            gains, tissue = xp.asarray(gains, xp.float32), xp.ascontiguousarray(xp.asarray(tissue), bool)
        return lambda start, stop: (stop, (gains[start:stop], tissue[start:stop]))

    def faults(self, shape: tuple[int, int, int]) -> Iterator[str]:
        """See `Correction.faults`."""
        yield from misfits("gain", self.gain, shape[:1], SMALLEST, LARGEST)
        yield from misfits("measured", self.measured, shape[:1])

    def plane_gains(self) -> np.ndarray:
        """Return the gains."""
        return self.gain

    @property
    def avoided_by(self) -> str:
        """See `Correction.avoided_by`."""
        return "--trust proven, or --smooth-z 0" if self.share == 1 else "--smooth-z 0"

    def shares(self, n_planes: int) -> np.ndarray:
        """See `Correction.shares`."""
        return np.where(self.measured, self.share, np.nan)

    @property
    def idle(self) -> bool:
        """See `Correction.idle`."""
        return not self.measured.any()

    def summary(self) -> dict[str, Any]:
        """Return the spread of the gains and how many planes were measured."""
        gains = self.gain[self.measured] if self.measured.any() else np.ones(1, np.float32)
        return {
            "sigma_planes": float(self.sigma),
            "share": float(self.share),
            "planes_measured": int(self.measured.sum()),
            "planes_left_alone": int((~self.measured).sum()),
            "gain_min": float(gains.min()),
            "gain_max": float(gains.max()),
            "gain_sd": float(gains.std()),
        }


def smooth_along(values: np.ndarray, weights: np.ndarray, sigma: float) -> np.ndarray:
    """Return the Gaussian mean along a profile of the values that have weight; 0 where none is within reach.

    Beyond the ends the profile is mirrored, so that with weights of 1 this is `scipy.ndimage.gaussian_filter1d`.
    """
    from scipy.ndimage import gaussian_filter1d

    values, weights = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    if sigma <= 0:
        return np.where(weights > 0, values, 0.0)
    total = gaussian_filter1d(values * weights, sigma)
    weight = gaussian_filter1d(weights, sigma)
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 1e-12)


@dataclass(frozen=True)
class TissueMeans:
    """The mean of the tissue of every plane.

    Parameters
    ----------
    means : (Z,) float64 array
        0 where there are too few voxels, or the mean is not positive; such planes keep gain 1.
    ends : slice
        Planes with valid voxels; what lies around is padding.
    """

    means: np.ndarray
    ends: slice

    @classmethod
    def of(
        cls,
        histograms: Distributions,
        previous: Sequence[Correction] = (),
        sections: SectionsLike = None,
        min_tissue_voxels: int = MIN_TISSUE_VOXELS,
    ) -> TissueMeans:
        """Measure from histograms; see `estimate_plane_gain`."""
        table, means = SectionTable.coerce(sections, histograms.n_planes), np.zeros(histograms.n_planes)
        for z in np.flatnonzero(table.usable_planes).tolist():
            values, counts = histograms.pairs(z, "tissue")
            values = map_through(previous, values, z).astype(np.float64)
            known = np.isfinite(values) & (values != 0)  # what became 0 is background
            number = counts[known].sum()
            if number >= max(1, min_tissue_voxels):
                means[z] = max(counts[known] @ values[known] / number, 0.0)
        return cls(means, filled_planes(histograms.filled))

    def times(self, gain: np.ndarray) -> TissueMeans:
        """Return the means after a gain of every plane."""
        return TissueMeans(self.means * gain, self.ends)

    def smoothed(self, sigma: float) -> PlaneGain:
        """Return the gains that make the means smooth along Z; 1 where fewer than `LEAST_PLANES` are measured."""
        means, measured = self.means, self.means > 0
        gain = np.ones(len(means))
        if sigma > 0 and measured.sum() >= LEAST_PLANES:
            target = np.zeros(len(means))
            target[self.ends] = smooth_along(means[self.ends], measured[self.ends], sigma)
            gain[measured] = target[measured] / means[measured]
        return PlaneGain(gain.astype(np.float32), measured, float(sigma))


def estimate_plane_gain(
    histograms: Distributions,
    previous: Sequence[Correction] = (),
    sections: SectionsLike = None,
    sigma: float = 2.0,
    min_tissue_voxels: int = MIN_TISSUE_VOXELS,
) -> PlaneGain:
    """Estimate the plane gain from the tissue histograms of all planes.

    Parameters
    ----------
    histograms : Distributions
        Class `tissue`, of the whole volume.
    previous : sequence of corrections
        Applied before this one, in order; the histograms are pushed through their maps.
    sections : section table, count or None
        Planes of flagged sections are out of the smoothing and keep gain 1.
    sigma : float
        Sigma of the Gaussian in planes; 0 switches the step off (gain exactly 1).
    min_tissue_voxels : int
        Planes with fewer tissue voxels, or whose mean is not positive, keep gain 1 and are out of the smoothing. If
        fewer than three are left, every gain is 1, with a warning.
    """
    if sigma < 0:
        msg = f"sigma must be 0 (off) or more (planes), got {sigma}"
        raise InputError(msg)
    found = TissueMeans.of(histograms, previous, sections, min_tissue_voxels).smoothed(sigma)
    if sigma > 0 and found.measured.sum() < LEAST_PLANES:
        msg = (
            f"{found.measured.sum()} planes have enough tissue, fewer than {LEAST_PLANES}: smoothing along Z changes "
            "nothing; lower min_tissue_voxels, or give a mask with more tissue"
        )
        warnings.warn(msg, N4flowWarning, stacklevel=2)
    return found


@takes_arrays
def apply_zprofile_smoothing(
    vol: ArrayLike,
    mask: ArrayLike,
    sigma: float,
    min_tissue_voxels: int = MIN_TISSUE_VOXELS,
    *,
    sections: SectionsLike = None,
) -> NDArray[np.float32]:
    """Even out the brightness of tissue from plane to plane, keeping slow change along Z.

    Parameters
    ----------
    vol : (Z, Y, X) array
        NumPy, CuPy or dask (then lazy); any real type; never modified.
    mask : (Z, Y, X) mask
        Tissue: bool, 0/1, 0/255 or float. Everything else keeps its value.
    sigma : float
        Sigma of the Gaussian along Z, planes; 0 returns the input's values.
    min_tissue_voxels : int
        Planes with fewer tissue voxels are unchanged and out of the smoothing. With fewer than three others nothing is
        changed, with a warning.
    sections : section table or count, optional
        Planes of flagged sections are unchanged and out of the smoothing.

    Returns
    -------
    (Z, Y, X) float32 array of the kind of `vol`.
    """
    block: Any = as_block(vol)
    tissue, options = as_mask(mask, block.shape), ((), sections, sigma, min_tissue_voxels)
    if is_dask(block):
        correction = estimate_lazily(estimate_plane_gain, block, *options, tissue=tissue, measure=plane_means)
        return apply_lazily(block, correction, tissue)
    correction = estimate_plane_gain(plane_means(block, tissue), *options)
    return correction.apply(block.astype(np.float32), Where(0, 0, 0, tuple(block.shape), tissue))
