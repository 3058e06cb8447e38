"""Sharpening: the expected true log intensity, given the observed one.

The bias field blurs the histogram of log intensity. N4 models the blur as a Gaussian, deconvolves the histogram with a
Wiener filter, and computes for every observed intensity the mean of the true intensities that are blurred to it. The
bias field is then fitted to the difference between observed and expected intensity.

References
----------
J. G. Sled, A. P. Zijdenbos, A. C. Evans, "A nonparametric method for automatic correction of intensity nonuniformity
in MRI data", IEEE Trans. Medical Imaging 17(1), 1998. N. J. Tustison et al., "N4ITK: Improved N3 Bias Correction",
IEEE Trans. Medical Imaging 29(6), 2010.
"""

from __future__ import annotations

import math

import numpy as np


def padded_size(bins: int) -> int:
    """Return the length of the Fourier transforms: a power of two with padding on both sides of the histogram."""
    return int(2 ** (math.ceil(math.log2(bins)) + 1))


def fourier_table(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cosine and sine of 2 pi j / size for the compiled transforms, 0 <= j < size / 2."""
    angle = 2 * np.pi * np.arange(size // 2) / size
    return np.cos(angle), np.sin(angle)


def bin_position(values: np.ndarray, low: float, high: float, bins: int) -> np.ndarray:
    """Return the positions of values in the histogram, in bins: `low` is at 0, `high` at bins - 1.

    The division comes first, so that `high` is at bins - 1 without rounding: beyond it, it would not be counted.
    """
    return (np.asarray(values, np.float64) - low) / (high - low) * (bins - 1)


def histogram(values: np.ndarray, low: float, high: float, bins: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the histogram of log intensity; each voxel is divided linearly between the two nearest bins.

    Values outside [low, high] are not counted.

    Parameters
    ----------
    values : (n,) float array
    low, high : float
        Centres of the first and of the last bin.
    bins : int
    weights : (n,) float array, optional
        Weight of each voxel.

    Returns
    -------
    (bins,) float64 array
    """
    position = bin_position(values, low, high, bins)
    inside = (position >= 0) & (position <= bins - 1)
    count = np.ones(position.size) if weights is None else np.asarray(weights, np.float64)
    position, count = position[inside], count[inside]
    first = np.minimum(position.astype(np.int64), bins - 2)
    upper = position - first
    counts = np.bincount(first, count * (1 - upper), bins)
    return counts + np.bincount(first + 1, count * upper, bins)


def expected_log_intensity(
    counts: np.ndarray, low: float, high: float, fwhm: float = 0.15, wiener: float = 0.01
) -> np.ndarray:
    """Return E[true | observed] at the centre of each bin.

    With V the histogram, F the Gaussian and ^ the Fourier transform, the sharpened histogram U is the inverse transform
    of V^ conj(F^) / (|F^|^2 + wiener), with negative values set to 0. Then E = (F * (x U)) / (F * U), where x is log
    intensity and * convolution.

    V lies in the middle of the padded array. The deconvolution of a histogram with a hard edge puts mass below its
    lowest bin. That mass belongs to intensities just below the lowest one, and without padding it would wrap around to
    the brightest.

    Parameters
    ----------
    counts : (bins,) float array
    low, high : float
        Centres of the first and of the last bin.
    fwhm : float
        Full width at half maximum of the blur, log intensity.
    wiener : float
        Noise added to the squared magnitude of the blur's transform.

    Returns
    -------
    (bins,) float64 array
    """
    bins = counts.size
    size = padded_size(bins)
    offset = (size - bins) // 2
    slope = (high - low) / (bins - 1)
    padded = np.zeros(size)
    padded[offset : offset + bins] = counts
    blur = np.fft.fft(gaussian(size, fwhm / slope)).real  # The Gaussian is real and even, and so is its transform.
    sharpened = np.fft.ifft(np.fft.fft(padded) * blur / (blur**2 + wiener)).real.clip(min=0)
    intensity = low + (np.arange(size) - offset) * slope
    top = np.fft.ifft(np.fft.fft(intensity * sharpened) * blur).real
    bottom = np.fft.ifft(np.fft.fft(sharpened) * blur).real
    expected = np.divide(top, bottom, out=np.zeros(size), where=bottom != 0)
    return expected[offset : offset + bins]


def gaussian(size: int, fwhm: float) -> np.ndarray:
    """Return a periodic Gaussian whose sum is about 1, centred at index 0; `fwhm` is in samples."""
    index = np.arange(size)
    distance = np.minimum(index, size - index)
    return (2 * math.sqrt(math.log(2) / math.pi) / fwhm) * np.exp(-4 * math.log(2) * (distance / fwhm) ** 2)


def sharpen(values: np.ndarray, expected: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return E at each value, interpolated linearly between bin centres; outside [low, high], that of the last bin.

    A value can lie above `high` by rounding. Values below `low` exist only where ITK 5.4 misses the minimum (see
    `itk_range`); its unsigned bin index then wraps around to the last bin.
    """
    bins = expected.size
    position = bin_position(values, low, high, bins)
    inside = (position >= 0) & (position < bins - 1)
    first = np.where(inside, position, 0).astype(np.int64)
    between = expected[first] + (expected[first + 1] - expected[first]) * (position - first)
    return np.where(inside, between, expected[-1])


def itk_range(values: np.ndarray) -> tuple[float, float]:
    """Return the lowest and highest value as ITK 5.4 finds them.

    ITK 5.4 searches the minimum only among voxels that did not raise the maximum found so far. So it misses the minimum
    if that is the first voxel, or lies in a strictly rising run at the beginning.

    Parameters
    ----------
    values : (n,) float array in raster order
    """
    highest_before = np.maximum.accumulate(np.concatenate(([-np.inf], values[:-1])))
    seen = values[values <= highest_before]
    return float(seen.min()) if seen.size else float(values.min()), float(values.max())
