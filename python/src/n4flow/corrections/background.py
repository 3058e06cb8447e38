"""The spatial mean background: a Gaussian mean in plane, subtracted.

The mean at a voxel is sum_k G(k) w v / sum_k G(k) w over the voxels under the kernel, with w = 1 for those that count
and 0 for the rest (normalised convolution): beside padding it is a mean too. G is separable, the integral of a normal
density over each voxel, with sigma = radius / 2, cut where 99 % of the density lies within. A camera image has no
padding, and goes on beyond its border with the values there, as for arrlp: a slope is followed better than by a
truncated mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from n4flow.compute.arrays import array_module, as_array, check_float32, probe_gpu, to_numpy
from n4flow.compute.gpu import run_on_gpu
from n4flow.compute.threads import run_tasks, scratch
from n4flow.corrections.base import Correction, Where
from n4flow.errors import InputError

CUT_SIGMAS = 2.5758293035489004  # 99 % of a normal density lies within
RADIUS = 7.0  # pixels, of `bkgd_spatial_mean`
Radii: TypeAlias = float | tuple[float, float] | Sequence[float | tuple[float, float]]


def gaussian_kernel(sigma: float) -> np.ndarray:
    """Return the 1-D kernel of the mean: (2 r + 1,) float64, sum 1, r = the whole voxels within the cut."""
    from scipy.special import ndtr

    if not 0 < sigma < np.inf:
        msg = f"the radius of a background must be above 0 voxels, got {2 * sigma}"
        raise InputError(msg)
    reach = int(CUT_SIGMAS * sigma)
    offset = np.arange(-reach, reach + 1)
    kernel = ndtr((offset + 0.5) / sigma) - ndtr((offset - 0.5) / sigma)
    return kernel / kernel.sum()


def difference_kernel(sigma: float) -> np.ndarray:
    """Return the 1-D kernel of 'value minus mean': the kernel of the mean, negated, with 1 added at its centre."""
    kernel = -gaussian_kernel(sigma)
    kernel[len(kernel) // 2] += 1
    return kernel


def noise_factor(sigmas: tuple[float, float]) -> float:
    """Return sqrt(sum k_y^2) * sqrt(sum k_x^2) over the kernels of 'value minus mean'."""
    return float(np.prod([np.sqrt(np.sum(difference_kernel(sigma) ** 2)) for sigma in sigmas]))


def local_mean(plane: Any, sigmas: tuple[float, float], zeros_count: bool) -> Any:
    """Return the local mean of a (Y, X) plane, float32; 0 where nothing under the kernel counts.

    Non-finite voxels never count. Exact zeros do when `zeros_count`: the plane then has no padding, and goes on beyond
    its border as it is there; otherwise nothing beyond the border counts. Each result sums the same numbers in the same
    order wherever the plane was cut, as long as the cut is a kernel's reach away.
    """
    xp = array_module(plane)
    kernels = [gaussian_kernel(sigma) for sigma in sigmas]
    smooth = _smooth if xp is np else _smooth_arrays
    counted = xp.isfinite(plane) if zeros_count else xp.isfinite(plane) & (plane != 0)
    if zeros_count and counted.all():  # the weights are 1
        return smooth(plane, kernels, goes_on=True)
    total = smooth(xp.where(counted, plane, 0), kernels, goes_on=zeros_count)
    weight = smooth(counted, kernels, goes_on=zeros_count)
    return xp.where(weight > 0, total / xp.where(weight > 0, weight, 1), 0)


def _smooth(plane: np.ndarray, kernels: Sequence[np.ndarray], goes_on: bool) -> np.ndarray:
    """Return a plane filtered along Y and X, float32, beyond whose border there are its border's values, or zeros."""
    from n4flow.masks import kernels as tissue_kernels

    margins = [len(kernel) // 2 if goes_on else 0 for kernel in kernels]
    wide = np.pad(plane, [(n, n) for n in margins], mode="edge")
    height, width = wide.shape
    rows = scratch("rows", (height + 1, -(-width // tissue_kernels.COLUMNS) * tissue_kernels.COLUMNS), np.float32)
    rows[:-1, :width] = wide
    rows[-1], rows[:, width:] = 0, 0
    out = np.empty(wide.shape, np.float32)
    halves = [kernel[len(kernel) // 2 :] for kernel in kernels]
    tissue_kernels.smooth(rows, 0, np.ones(1), *halves, out)
    return out[margins[0] : height - margins[0], margins[1] : width - margins[1]]


def _smooth_arrays(plane: Any, kernels: Sequence[np.ndarray], goes_on: bool) -> Any:
    """Do what `_smooth` does on the device that holds `plane`."""
    from cupyx.scipy.ndimage import correlate1d

    xp = array_module(plane)
    values = plane.astype(xp.float32)
    for axis, kernel in enumerate(kernels):
        values = correlate1d(values, xp.asarray(kernel), axis=axis, mode="nearest" if goes_on else "constant")
    return values


@dataclass
class SpatialMeanBackground(Correction):
    """Subtract the Gaussian mean around each voxel, in plane.

    Parameters
    ----------
    radius : pair of float
        (y, x) in voxels; sigma is half of it.
    """

    kind: ClassVar[str] = "background"
    title: ClassVar[str] = "local background subtracted"
    radius: tuple[float, float]

    def __post_init__(self) -> None:
        self.radius = (float(self.radius[0]), float(self.radius[1]))
        self.margin = (len(gaussian_kernel(self.sigmas[0])) // 2, len(gaussian_kernel(self.sigmas[1])) // 2)

    @property
    def sigmas(self) -> tuple[float, float]:
        """Sigma (y, x) of the Gaussian, voxels."""
        return (self.radius[0] / 2, self.radius[1] / 2)

    def apply(self, block: Any, where: Where) -> Any:
        """Return the block minus its local mean; not right within `margin` of an edge that is not the volume's.

        Exact zeros (padding) and non-finite voxels count for nothing and stay as they are. NumPy or CuPy.
        """
        xp = array_module(block)
        block = xp.ascontiguousarray(block, dtype=xp.float32)

        def work(i: int) -> None:
            plane = block[i]
            valid = xp.isfinite(plane) & (plane != 0)
            block[i] = xp.where(valid, plane - local_mean(plane, self.sigmas, zeros_count=False), plane)

        run_tasks(work, range(block.shape[0]), 1 if xp is not np else None)
        return block

    def summary(self) -> dict[str, Any]:
        """Return radius and sigma in voxels, and how the step scales uncorrelated noise."""
        return {
            "radius_voxels": list(self.radius),
            "sigma_voxels": list(self.sigmas),
            "noise_factor": noise_factor(self.sigmas),
        }


def _radii(radii: Any, n_channels: int) -> list[tuple[float, float]]:
    """Return one (y, x) pair per channel from a number, a pair of numbers for all, or an entry for each channel."""
    if np.ndim(radii) == 0 or (len(radii) == 2 and all(np.ndim(r) == 0 for r in radii)):
        radii = [radii] * n_channels
    if len(radii) != n_channels:
        msg = f"channels_mean_radii_pix must be a number, a (y, x) pair or {n_channels} entries, got {len(radii)}"
        raise InputError(msg)
    return [(float(r), float(r)) if np.ndim(r) == 0 else (float(r[0]), float(r[1])) for r in radii]


def bkgd_spatial_mean(
    channels: Sequence[ArrayLike],
    /,
    channels_mean_radii_pix: Radii | None = None,
    bkgds: Sequence[NDArray[np.float32]] | None = None,
    noise_corrections: Sequence[float] | None = None,
    *,
    cuda: bool | None = None,
    parallel: bool | None = None,
    config: object = None,
) -> tuple[list[NDArray[np.float32]], list[np.float32], dict[str, Any]]:
    """Return the Gaussian mean background of each channel's planes; nothing is subtracted.

    Parameters
    ----------
    channels : sequence of (planes, Y, X) arrays
        NumPy or CuPy, any real type; never modified. Camera images have no padding: exact zeros count as data here.
    channels_mean_radii_pix : float, pair or sequence
        Radius in pixels, by default 7: one number for all, a (y, x) pair of numbers for all, or one pair (or number)
        for each channel. Two numbers are always a pair for all; for two channels with a radius each, give two pairs.
        Sigma is half the radius.
    bkgds : sequence of arrays, optional
        Buffers that the backgrounds are written to, cut to the planes of their channel.
    noise_corrections : sequence of float, optional
        Multiplied by sqrt(sum k_y^2) sqrt(sum k_x^2); 1 when left out. The sequence given is not modified.
    cuda : bool
        Compute on the GPU also for arrays in host memory; without a working GPU that is a GpuError.
    parallel : bool
        Use every core; the result is the same.
    config : object, optional
        Its attributes of the names of the arguments above, if it has them, stand for arguments that are left out, as
        with blocks of smlmlp. It is not modified.

    Returns
    -------
    backgrounds : list of (planes, Y, X) float32 arrays
        The buffers where given.
    noise_corrections : list of float32
    info : dict
        channels_mean_radii_pix, spatial_mean_sigmas, spatial_mean_kernels_y, spatial_mean_kernels_x, one entry per
        channel.

    Raises
    ------
    InputError
        (a ValueError) Radii, buffers or noise corrections of another length than the channels; a channel without
        three axes.
    """
    given: dict[str, Any] = {
        "channels_mean_radii_pix": channels_mean_radii_pix,
        "bkgds": bkgds,
        "noise_corrections": noise_corrections,
        "cuda": cuda,
        "parallel": parallel,
    }
    radii, bkgds, noise_corrections, cuda, parallel = (
        getattr(config, name, None) if value is None else value for name, value in given.items()
    )
    channels = [as_array(channel) for channel in channels]
    radii = _radii(RADIUS if radii is None else radii, len(channels))
    for name, values in (("bkgds", bkgds), ("noise_corrections", noise_corrections)):
        if values is not None and len(values) != len(channels):
            msg = f"{name} must have one entry for each of {len(channels)} channels, got {len(values)}"
            raise InputError(msg)
    if cuda:
        probe_gpu()
    sigmas = [(y / 2, x / 2) for y, x in radii]
    before, buffers = (
        values if values is not None else [None] * len(channels) for values in (noise_corrections, bkgds)
    )
    backgrounds = [_background(*one, bool(cuda), bool(parallel)) for one in zip(channels, buffers, sigmas, strict=True)]
    factors = [
        np.float32((np.float32(1) if n is None else np.float32(n)) * noise_factor(s))
        for n, s in zip(before, sigmas, strict=True)
    ]
    info = {
        "channels_mean_radii_pix": radii,
        "spatial_mean_sigmas": sigmas,
        "spatial_mean_kernels_y": [difference_kernel(y).astype(np.float32) for y, _x in sigmas],
        "spatial_mean_kernels_x": [difference_kernel(x).astype(np.float32) for _y, x in sigmas],
    }
    return backgrounds, factors, info


def _background(channel: Any, buffer: Any, sigmas: tuple[float, float], cuda: bool, parallel: bool) -> Any:
    channel = channel if hasattr(channel, "ndim") else np.asarray(channel)
    if channel.ndim != 3:
        msg = f"each channel must be a (planes, Y, X) stack, got shape {tuple(channel.shape)}"
        raise InputError(msg)
    check_float32(channel, "channel")
    xp = array_module(channel)
    out = xp.empty(channel.shape, xp.float32) if buffer is None else buffer[: len(channel)]
    if tuple(out.shape) != tuple(channel.shape):
        msg = f"a background buffer must hold its channel {tuple(channel.shape)}, got {tuple(buffer.shape)}"
        raise InputError(msg)
    device: Any = xp
    if cuda and xp is np:
        import cupy

        device = cupy

    def work(z: int) -> None:
        mean = local_mean(device.asarray(channel[z]), sigmas, zeros_count=True)
        out[z] = mean if array_module(out) is device else to_numpy(mean)

    if device is np:
        run_tasks(work, range(len(channel)), None if parallel else 1)
    else:
        run_on_gpu(lambda _voxels: run_tasks(work, range(len(channel)), 1), release=xp is np)
    return out
