"""Otsu's threshold of a distribution, on which scale to look for it, and whether there are two classes at all.

Otsu (1979, IEEE Trans. SMC 9:62-66) takes the threshold with the largest between-class variance
w0 w1 (m1 - m0)^2. It splits anything, noise too; `Split.one_class` says when there is nothing to split.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from n4flow.compute.arrays import array_module
from n4flow.n4_bias.otsu_mask import otsu_cut
from n4flow.statistics.pooling import weighted_percentile

TOP_PERCENTILE = 99.9  # brighter voxels (debris) count as this bright, so that they do not stretch the histogram
# A normal distribution has a separability of 2/pi = 0.64 and a uniform one of 0.75; neither has a valley.
ONE_CLASS_SEPARABILITY = 0.72
ONE_CLASS_VALLEY = 0.9
ONE_CLASS_RATIO = 2.0
ROUNDING = 1e-5  # values this near to each other are one value that smoothing in float32 has rounded
CLEAR_SEPARABILITY = 0.9  # intensities as they are separate the classes well enough
LOG_SEPARABILITY = 0.78  # below, shading may be what the logarithm separates

Pairs = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Scale:
    """The scale on which intensities are smoothed and split: as they are, or their logarithm.

    Shading and gain multiply, so tissue under strong shading is one class only on the logarithmic scale.

    Parameters
    ----------
    floor : float or None
        None: linear. Else the scale is 1 + log(max(v, floor) / floor), which is positive everywhere.
    """

    floor: float | None = None

    @property
    def name(self) -> str:
        """`linear` or `log`."""
        return "linear" if self.floor is None else "log"

    def forward(self, values: Any) -> Any:
        """Return the valid intensities on the scale, float32; exact zeros and non-finite voxels become 0."""
        xp = array_module(values)
        values = values.astype(xp.float32, copy=False)
        valid = xp.isfinite(values) & (values != 0)
        if self.floor is None:
            return xp.where(valid, values, xp.float32(0))
        floor = xp.float32(self.floor)
        scaled = xp.maximum(values, floor)
        scaled /= floor
        xp.log(scaled, out=scaled)
        scaled += 1
        return xp.where(valid, scaled, xp.float32(0))

    def back(self, value: float) -> float:
        """Return the intensity at a point of the scale."""
        return value if self.floor is None else float(self.floor * np.exp(value - 1))


@dataclass(frozen=True)
class Split:
    """A distribution cut in two. Threshold and means are points of `scale`.

    Parameters
    ----------
    threshold : float
        Values above it are bright.
    dark, bright : float
        Means of the two classes.
    separability : float
        Between-class variance over total variance, 0 to 1.
    valley : float
        Lowest density between the peaks of the classes over the lower of the two peaks; 1 when there is no valley.
    variance : float
        Total variance.
    scale : Scale
        Linear when left out.
    """

    threshold: float
    dark: float
    bright: float
    separability: float
    valley: float
    variance: float
    scale: Scale = Scale()

    @property
    def one_class(self) -> bool:
        """Whether nothing speaks for two classes: little separability, no valley, and means within a factor of two.

        All three, because each alone is met by real tissue in real agarose: strong shading fills the valley, and an
        offset of the detector brings the means together.
        """
        near = 0 < self.contrast < np.log(ONE_CLASS_RATIO)
        return near and self.separability < ONE_CLASS_SEPARABILITY and self.valley > ONE_CLASS_VALLEY

    @property
    def contrast(self) -> float:
        """Log ratio of the class means, which a section's gain does not change; 0 when they are not positive."""
        if self.scale.floor is not None:
            return self.bright - self.dark
        return float(np.log(self.bright / self.dark)) if self.dark > 0 and self.bright > 0 else 0.0


class Separability:
    """The between-class over the total variance within sections, all sections together.

    Variances are relative to the section's mean, so that neither sections of different gain nor one that is far too
    bright pass for two classes.
    """

    def __init__(self) -> None:
        self._between = self._total = 0.0

    def add(self, split: Split, values: np.ndarray, counts: np.ndarray) -> None:
        """Add a section's split, and the intensities (values, counts) that it was found in."""
        unit = float(np.average(values, weights=counts)) ** 2 if split.scale.floor is None else 1.0
        if unit > 0:  # a mean of 0 has negative values, which have no scale but the linear one
            weight = float(counts.sum()) * split.variance / unit
            self._between += weight * split.separability
            self._total += weight

    @property
    def share(self) -> float:
        """From 0 to 1; 0 without sections."""
        return self._between / self._total if self._total else 0.0


def choose_scale(sections: Iterable[Pairs], together: Pairs, within: float) -> Scale:
    """Return the scale on which a volume falls apart into two classes.

    Linear when that is clear enough (`CLEAR_SEPARABILITY`) or values are negative. Else logarithmic when that is
    clearer, and clear enough itself (`LOG_SEPARABILITY`), or when the linear scale shows one class and the logarithm
    two.

    Parameters
    ----------
    sections : iterable of pairs (values, counts)
        Of each section; gone through once, where the linear scale is in doubt.
    together : pairs
        Of all of them.
    within : float
        Separability within sections on the linear scale.
    """
    linear = otsu_split(*together)
    if linear is None or together[0][0] <= 0 or (within >= CLEAR_SEPARABILITY and not linear.one_class):
        return Scale()
    # Well below what smoothed intensities reach, so that single dark voxels do not stretch the scale.
    scale = Scale(weighted_percentile(*together, 100 - TOP_PERCENTILE) / 8)
    log = otsu_split(scale.forward(together[0]), together[1], scale=scale)
    if log is None or log.one_class:
        return Scale()
    if linear.one_class:
        return scale
    separability = Separability()
    for values, counts in sections:
        split = otsu_split(scale.forward(values), counts, scale=scale)
        if split is not None:
            separability.add(split, values, counts)
    return scale if separability.share > max(within, LOG_SEPARABILITY) else Scale()


def otsu_split(values: np.ndarray, counts: np.ndarray, n_bins: int = 256, scale: Scale | None = None) -> Split | None:
    """Split pooled (value, count) pairs, given on `scale`; None when there are no voxels or one value."""
    from scipy.ndimage import gaussian_filter1d

    if not len(values) or values[-1] - values[0] <= ROUNDING * max(abs(values[0]), abs(values[-1])):
        return None
    values = values.astype(np.float64)
    low, top = float(values[0]), weighted_percentile(values, counts, TOP_PERCENTILE)
    if not top > low:
        low, top = float(values[0]), float(values[-1])
    histogram, edges = np.histogram(np.minimum(values, top), n_bins, (low, top), weights=counts)
    centres = (edges[:-1] + edges[1:]) / 2
    cut = otsu_cut(histogram, centres)
    dark, bright = (slice(0, cut + 1), slice(cut + 1, n_bins))
    means = [float(np.average(centres[side], weights=histogram[side])) for side in (dark, bright)]
    total = float(np.average((centres - np.average(centres, weights=histogram)) ** 2, weights=histogram))
    share = histogram[dark].sum() / histogram.sum()
    density = gaussian_filter1d(histogram.astype(np.float64), 0.03 * n_bins)
    first, second = int(np.argmax(density[dark])), cut + 1 + int(np.argmax(density[bright]))
    valley = float(density[first : second + 1].min() / min(density[first], density[second]))
    between = share * (1 - share) * (means[1] - means[0]) ** 2
    return Split(float(centres[cut]), means[0], means[1], between / total, valley, total, scale or Scale())
