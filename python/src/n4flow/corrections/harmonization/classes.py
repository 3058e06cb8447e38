"""Classes of tissue: one mixture for the volume, with proportions that change from place to place.

Shares of classes that change slowly are anatomy; a shift that is the same for every class is the instrument. So the
classes have the same log intensity everywhere, and shares of their own in each neighbourhood.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from n4flow.compute.threads import over_planes
from n4flow.corrections.harmonization import kernels
from n4flow.corrections.harmonization.geometry import block_sums

CLASSES = 3
NARROWEST, WIDEST = 0.02, 0.12  # sd of a class in log intensity
OUTLIER = 0.1  # density of what belongs to no class
BINS = 400
CLASS_WEIGHT = 0.002  # weight of one voxel: neighbouring voxels are not independent
TILE = 4  # voxels of the fitted grid
REACH = 1.5  # sigma of the neighbourhood in plane, tiles
REACH_Z = 8.0  # sigma of the neighbourhood along Z, planes
PSEUDO_VOXELS = 20.0  # voxels in the proportions of the whole volume that are added to each neighbourhood
NOISY = 0.06  # noise above which intensities are smoothed in plane too

Mixture = tuple[np.ndarray, np.ndarray, np.ndarray]  # means, standard deviations, proportions


class Classes:
    """Posterior class probabilities of a volume of log intensities.

    Parameters
    ----------
    inside : (Z, y, x) bool array
        Tissue.
    noise : float
        Standard deviation of the log intensity of a voxel.
    stride : int
        Planes from one to the next.
    """

    def __init__(self, inside: np.ndarray, noise: float, stride: int = 1) -> None:
        self.inside, self._reach_z = inside, REACH_Z / stride
        self.mixture: Mixture | None = None
        self.sigma_z, self.sigma = (1.5, 0.5) if noise > NOISY else (0.8, 0.0)
        weights = inside.astype(np.float32)
        self._share_z = np.maximum(ndimage.gaussian_filter1d(weights, self.sigma_z, axis=0), 1e-3)
        self._share = None
        if self.sigma:
            self._share = np.maximum(ndimage.gaussian_filter(weights, (0, self.sigma, self.sigma)), 1e-3)
        self._around = self._smooth(block_sums(weights, TILE))
        self._proportions: np.ndarray | None = None
        self._sums = np.zeros((CLASSES, *self._around.shape), np.float32)
        self.weight, self.target = np.zeros(inside.shape, np.float32), np.zeros(inside.shape, np.float32)
        self._tissue = np.flatnonzero(inside)

    def denoised(self, logs: np.ndarray) -> np.ndarray:
        """Return log intensities smoothed over tissue; `logs` is 0 outside."""
        t = ndimage.gaussian_filter1d(logs, self.sigma_z, axis=0) / self._share_z
        if self._share is not None:
            t = ndimage.gaussian_filter(np.where(self.inside, t, 0), (0, self.sigma, self.sigma)) / self._share
        return np.asarray(t, np.float32)

    def update(self, logs: np.ndarray) -> None:
        """Take corrected log intensities (0 outside tissue): fit the mixture, the proportions, the posteriors."""
        self.learn(self.denoised(logs))

    def learn(self, t: np.ndarray) -> None:
        """Take corrected log intensities that are denoised; see `update`."""
        values = t.ravel()[self._tissue]
        low, high = np.quantile(values[::7], [0.002, 0.998]) + np.array([-0.1, 0.1])
        step = (high - low) / BINS
        centres = low + (np.arange(BINS) + 0.5) * step
        bins = np.clip(((values - low) / step).astype(np.int32), 0, BINS - 1)
        counts = np.bincount(bins, minlength=BINS).astype(float)
        first = self.mixture is None
        self.mixture = means, sds, shares = fit_mixture(counts, centres, self.mixture, 80 if first else 20)
        densities = np.exp(np.maximum(-0.5 * ((centres[:, None] - means) / sds) ** 2, -20)) / sds
        table = densities.astype(np.float32)
        for _pass in range(3 if first else 1):
            prior = shares[:, None, None, None] if self._proportions is None else self._proportions
            prior = np.broadcast_to(prior, (CLASSES, *self._around.shape)).astype(np.float32, order="C")
            arguments = (float(low), float(1 / step), table, OUTLIER, means, 1 / sds**2)

            places = self._sums, self.weight, self.target
            over_planes(kernels.class_planes, len(t), t, self.inside, prior, TILE, *arguments, *places)
            tiles = self._smooth(self._sums)
            voxels = (2 * np.pi) ** 1.5 * max(self._reach_z, 0.4) * (REACH * TILE) ** 2  # a plane at least
            pseudo = PSEUDO_VOXELS / voxels * TILE**2
            self._proportions = (tiles + pseudo * shares[:, None, None, None]) / (self._around + pseudo)

    def restart(self) -> None:
        """Forget mixture and proportions."""
        self.mixture, self._proportions = None, None

    def _smooth(self, tiles: np.ndarray) -> np.ndarray:
        sigma = (self._reach_z, REACH, REACH)
        return np.asarray(ndimage.gaussian_filter(tiles, sigma, truncate=2.5, axes=(-3, -2, -1)))


def fit_mixture(counts: np.ndarray, centres: np.ndarray, start: Mixture | None, passes: int) -> Mixture:
    """Fit normals, ordered by their means, and a uniform outlier density to a histogram by expectation maximisation.

    Without `start`, means begin at even quantiles, and widths are fitted first without limits, then with.
    """
    h = counts / counts.sum()
    phases: Sequence[tuple[float, float]] = ((WIDEST, OUTLIER),)
    if start is None:
        cumulative = np.cumsum(h)
        means = np.interp((np.arange(CLASSES) + 0.5) / CLASSES, cumulative, centres)
        spread = np.interp(0.998, cumulative, centres) - np.interp(0.002, cumulative, centres)
        sds, shares = np.full(CLASSES, max(spread, NARROWEST) / CLASSES / 2), np.full(CLASSES, 1 / CLASSES)
        phases = ((np.inf, 1e-12), (WIDEST, OUTLIER))
    else:
        means, sds, shares = start
    powers = np.stack([np.ones_like(centres), centres, centres**2], axis=1)
    for widest, outlier in phases:
        for _pass in range(passes):
            sds = np.clip(sds, NARROWEST, widest)
            p = centres - means[:, None]
            p *= p
            p *= (-0.5 / sds**2)[:, None]
            np.exp(np.maximum(p, -30, out=p), out=p)
            p *= (shares / sds)[:, None]
            p *= h / (p.sum(axis=0) + outlier)
            sums, firsts, squares = (p @ powers).T
            shares = sums + 1e-9
            means = firsts / shares
            variances = np.maximum(squares / shares - means**2, 0)
            sds = np.clip(np.sqrt(variances + 1e-6), NARROWEST, widest)
    order = np.argsort(means)
    return means[order], sds[order], shares[order]


def structure(values: np.ndarray) -> tuple[float, float]:
    """Return (sd, negentropy) of the central 99 % of values; zeros where they are all the same.

    Negentropy is by how many nats the histogram is more structured than a normal one of the same sd.
    """
    low, high = np.quantile(values[::3], [0.005, 0.995])
    values = values[(values > low) & (values < high)]
    if not values.size:
        return 0.0, 0.0
    sd, width = float(values.std()), 0.05
    h = np.histogram((values - values.mean()) / max(sd, 1e-9), np.arange(-5, 5 + width, width))[0].astype(float)
    h = ndimage.gaussian_filter1d(h, 1.5)
    h /= h.sum()
    return sd, 0.5 * float(np.log(2 * np.pi * np.exp(1))) + float((h * np.log(h + 1e-12)).sum()) - np.log(width)
