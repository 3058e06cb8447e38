"""Sharpening: the plain statement against sums written out, the compiled loops against the plain statement."""

import math

import numpy as np
import pytest

from n4flow.n4_bias import sharpening
from n4flow.n4_bias.cpu import sharpening_kernels as kernels

RNG = np.random.default_rng(1)


def two_classes(n: int = 4000) -> np.ndarray:
    return np.concatenate((RNG.normal(4.5, 0.08, n), RNG.normal(5.2, 0.08, n)))


def test_histogram_shares_a_voxel_between_two_bins():
    counts = sharpening.histogram(np.array([0.0, 1.0, 1.25, 3.0, 3.5, -0.5]), 0.0, 3.0, 4)
    assert counts.tolist() == [1, 1.75, 0.25, 1]  # 3.5 and -0.5 lie outside
    weighted = sharpening.histogram(np.array([0.0, 1.25]), 0.0, 3.0, 4, weights=np.array([2.0, 4.0]))
    assert weighted.tolist() == [2, 3, 1, 0]


def test_the_brightest_voxel_is_counted():
    for low, spread in RNG.uniform(1, 4, (200, 2)):  # rounding would put about one in twenty beyond the last bin
        counts = sharpening.histogram(np.array([low, low + spread]), low, low + spread, 200)
        assert counts[[0, -1]].tolist() == [1, 1]


def test_expectation_is_the_deconvolution_written_out():
    values = two_classes()
    low, high, bins, fwhm, noise = values.min(), values.max(), 50, 0.3, 0.02
    counts = sharpening.histogram(values, low, high, bins)
    size, slope = 128, (high - low) / (bins - 1)
    assert sharpening.padded_size(bins) == size
    offset = (size - bins) // 2
    n = np.arange(size)
    transform = np.exp(-2j * math.pi * np.outer(n, n) / size)  # a matrix, not an FFT
    inverse = transform.conj() / size
    distance = np.minimum(n, size - n)
    q = fwhm / slope
    blur = transform @ (2 * math.sqrt(math.log(2) / math.pi) / q * np.exp(-4 * math.log(2) * distance**2 / q**2))
    padded = np.zeros(size)
    padded[offset : offset + bins] = counts
    wiener = (blur.conj() / (np.abs(blur) ** 2 + noise)).real
    sharpened = np.maximum((inverse @ ((transform @ padded) * wiener)).real, 0)
    x = low + (n - offset) * slope
    top = (inverse @ ((transform @ (x * sharpened)) * blur)).real
    bottom = (inverse @ ((transform @ sharpened) * blur)).real
    expected = (top / bottom)[offset : offset + bins]
    assert np.allclose(sharpening.expected_log_intensity(counts, low, high, fwhm, noise), expected, atol=1e-9)


def test_sharpening_pulls_towards_the_classes():
    values = two_classes()
    low, high = values.min(), values.max()
    expected = sharpening.expected_log_intensity(sharpening.histogram(values, low, high, 200), low, high)
    sharpened = sharpening.sharpen(values, expected, low, high)
    for centre in (4.5, 5.2):
        near = np.abs(values - centre) < 0.2
        assert sharpened[near].std() < 0.7 * values[near].std()
        assert sharpened[near].mean() == pytest.approx(centre, abs=0.03)


def test_range_misses_a_first_voxel_that_is_the_minimum():
    assert sharpening.itk_range(np.array([3.0, 1.0, 2.0])) == (1.0, 3.0)
    assert sharpening.itk_range(np.array([1.0, 5.0, 2.0, 3.0])) == (2.0, 5.0)
    assert sharpening.itk_range(np.array([1.0, 5.0, 1.0, 3.0])) == (1.0, 5.0)  # found where it comes again
    assert sharpening.itk_range(np.array([1.0, 2.0, 3.0, 9.0, 5.0])) == (5.0, 9.0)  # the whole rising start is missed
    assert sharpening.itk_range(np.array([1.0, 2.0, 3.0])) == (1.0, 3.0)


def test_values_below_the_range_get_the_last_bin():
    expected = np.array([1.0, 2.0, 4.0])
    got = sharpening.sharpen(np.array([-0.1, 0.0, 0.5, 1.0, 1.5, 2.0]), expected, 0.0, 2.0)
    assert got.tolist() == [4, 1, 1.5, 2, 3, 4]


@pytest.mark.parametrize("size", [16, 64, 512, 4096])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_compiled_transform(size, sign):
    z = RNG.standard_normal(size) + 1j * RNG.standard_normal(size)
    re, im = z.real.copy(), z.imag.copy()
    angle = 2 * np.pi * np.arange(size // 2) / size
    kernels.transform(re, im, np.empty(size), np.empty(size), np.cos(angle), np.sin(angle), sign)
    expected = np.fft.fft(z) if sign < 0 else np.fft.ifft(z) * size
    assert np.allclose(re + 1j * im, expected, atol=1e-11 * size)


@pytest.mark.parametrize("bins", [20, 64, 200])
def test_compiled_expectation(bins):
    values = two_classes()
    low, high = float(values.min()), float(values.max())
    counts = sharpening.histogram(values, low, high, bins)
    size = sharpening.padded_size(bins)
    angle = 2 * np.pi * np.arange(size // 2) / size
    got = np.empty(bins)
    kernels.expected_log_intensity(
        counts, low, high, bins, 0.15, 0.01, np.cos(angle), np.sin(angle), np.empty((5, size)), got
    )
    # bins that nothing reaches are quotients of rounding errors; no voxel reads them
    reached = counts > 0
    plain = sharpening.expected_log_intensity(counts, low, high)
    assert np.allclose(got[reached], plain[reached], atol=1e-9)


def test_fine_bins_stand_for_their_voxels():
    values = two_classes()
    low, high, bins = float(values.min()), float(values.max()), 200
    step = (high - low) / (bins - 1) / 16
    origin, n_fine = low - step, (bins - 1) * 16 + 4
    index = ((values - origin) / step).astype(int)
    counts, fine = np.empty(bins), np.bincount(index, minlength=n_fine).astype(np.int32)
    per_bin = (bins - 1) / (high - low)
    start, stride = (origin + 0.5 * step - low) * per_bin, step * per_bin
    bounds = np.empty(bins, np.int64)
    kernels.fine_bounds(n_fine, start, stride, bins, bounds)
    kernels.histogram(fine, n_fine, start, stride, bounds, counts)
    plain = sharpening.histogram(values, low, high, bins)
    assert counts.sum() == pytest.approx(values.size)
    # a voxel moves by at most half a fine bin, 1/32 of a bin
    assert np.abs(np.cumsum(counts) - np.cumsum(plain)).max() <= plain.max() / 32
    expected = sharpening.expected_log_intensity(plain, low, high)
    table = np.empty(n_fine, np.float32)
    kernels.residual_table(expected, n_fine, start, stride, bounds, origin, step, table)
    residual = values - sharpening.sharpen(values, expected, low, high)
    slope = np.abs(1 - np.diff(expected) / np.diff(np.linspace(low, high, bins))).max()
    assert np.abs(table[index] - residual).max() <= 0.51 * step * max(slope, 1)
