"""Otsu's threshold of a distribution, and whether the distribution has two classes at all.

Otsu (1979, IEEE Trans. SMC 9:62-66) takes the threshold with the largest between-class variance
w0 w1 (m1 - m0)^2. It splits anything, noise too; `Split.one_class` says when there is nothing to split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from n4flow.bins import weighted_percentile

TOP_PERCENTILE = 99.9  # brighter voxels (debris) count as this bright, so that they do not stretch the histogram
# A normal distribution has a separability of 2/pi = 0.64 and a uniform one of 0.75; neither has a valley.
ONE_CLASS_SEPARABILITY = 0.72
ONE_CLASS_VALLEY = 0.9
ONE_CLASS_RATIO = 2.0


@dataclass(frozen=True)
class Split:
    """A distribution cut in two.

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
    """

    threshold: float
    dark: float
    bright: float
    separability: float
    valley: float

    @property
    def one_class(self) -> bool:
        """Whether nothing speaks for two classes: little separability, no valley, and means within a factor of two.

        All three, because each alone is met by real tissue in real agarose: strong shading fills the valley, and an
        offset of the detector brings the means together.
        """
        near = self.dark > 0 and self.bright < ONE_CLASS_RATIO * self.dark
        return near and self.separability < ONE_CLASS_SEPARABILITY and self.valley > ONE_CLASS_VALLEY

    @property
    def contrast(self) -> float:
        """Log ratio of the class means, which a section's gain does not change; 0 when they are not positive."""
        return float(np.log(self.bright / self.dark)) if self.dark > 0 and self.bright > 0 else 0.0


def otsu_cut(counts: np.ndarray, centres: np.ndarray) -> int:
    """Return the last bin of the dark class: the first maximum of the between-class variance."""
    weight = np.cumsum(counts, dtype=np.float64)[:-1]
    moment = np.cumsum(counts * centres, dtype=np.float64)
    rest = counts.sum() - weight
    both = (weight > 0) & (rest > 0)
    between = np.zeros(len(weight))
    difference = moment[:-1][both] / weight[both] - (moment[-1] - moment[:-1][both]) / rest[both]
    between[both] = weight[both] * rest[both] * difference**2
    return int(np.argmax(between))


def otsu_split(values: np.ndarray, counts: np.ndarray, n_bins: int = 256) -> Split | None:
    """Split pooled (value, count) pairs; None when there are no voxels or only one value."""
    from scipy.ndimage import gaussian_filter1d

    if len(values) < 2:
        return None
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
    return Split(
        float(centres[cut]), means[0], means[1], share * (1 - share) * (means[1] - means[0]) ** 2 / total, valley
    )
