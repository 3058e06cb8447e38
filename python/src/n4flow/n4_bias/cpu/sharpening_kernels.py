# mypy: ignore-errors
# (numba gives these functions their types)
"""Sharpening, compiled: the residual of each fine bin from the counts of all. `sharpening` is the same in NumPy.

Voxels are counted in bins many times finer than those of the histogram, and the residual of a voxel is that at the
centre of its fine bin. So histogram, deconvolution and residuals are computed for a few thousand fine bins instead of
all voxels.
"""

from __future__ import annotations

import math

import numpy as np

from n4flow.compute.jit import kernel, row_kernel

up = np.uintp


@row_kernel
def butterflies(re, im, re2, im2, half, run, cosine, sine, sign):
    """One pass of `transform`, from the first two arrays to the other two, in which runs are twice as long."""
    for j in range(half):
        wr, wi = cosine[j * run], sign * sine[j * run]
        p, q, s = j * run, (j + half) * run, up(2) * j * run
        t = s + run
        for k in range(run):
            xr, xi, yr, yi = re[p + k], im[p + k], re[q + k], im[q + k]
            zr, zi = xr - yr, xi - yi
            re2[s + k] = xr + yr
            im2[s + k] = xi + yi
            re2[t + k] = zr * wr - zi * wi
            im2[t + k] = zr * wi + zi * wr


@kernel
def transform(re, im, re2, im2, cosine, sine, sign):
    """Fourier transform of re + i im, in place and unscaled, by Stockham's algorithm, which needs no bit reversal.

    Parameters
    ----------
    re, im : (size,) float64 arrays
        The size is a power of two.
    re2, im2 : (size,) float64 arrays
        Work arrays.
    cosine, sine : (size / 2,) float64 arrays
        Of 2 pi j / size, see `sharpening.fourier_table`.
    sign : float
        -1, or 1 for the inverse.
    """
    half, run = up(re.size) >> up(1), up(1)
    there = False  # whether the data is in the second pair of arrays
    while half > up(0):
        if there:
            butterflies(re2, im2, re, im, half, run, cosine, sine, sign)
        else:
            butterflies(re, im, re2, im2, half, run, cosine, sine, sign)
        there = not there
        half >>= up(1)
        run <<= up(1)
    if there:
        for k in range(re.size):
            re[k], im[k] = re2[k], im2[k]


@kernel
def fine_bounds(n_fine, start, stride, bins, bounds):
    """Set bounds[i] to the first fine bin at or above bin i. Fine bin f is at start + f stride, in bins."""
    for i in range(bins):
        bounds[i] = min(max(np.int64(math.ceil((i - start) / stride)), 0), n_fine)


@kernel
def histogram(counts, n_fine, start, stride, bounds, out):
    """Write the histogram: the count of each fine bin is divided linearly between the two nearest bins.

    Between bins i and i + 1 the position of a fine bin is linear in its index. So the sum of counts and the sum of
    count times index, both integers, determine the shares of the two bins.
    """
    bins = out.size
    out[:] = 0.0
    for f in range(bounds[0]):  # The centre of the lowest fine bin may lie below the first bin.
        out[0] += counts[f]
    for f in range(bounds[bins - 1], n_fine):
        out[bins - 1] += counts[f]
    for i in range(bins - 1):
        begin = up(bounds[i])
        total, moment = np.int64(0), np.int64(0)
        for k in range(up(bounds[i + 1]) - begin):
            n = np.int64(counts[begin + k])
            total += n
            moment += n * np.int64(k)
        upper = total * (start + begin * stride - i) + moment * stride
        out[i] += total - upper
        out[i + 1] += upper


@kernel
def expected_log_intensity(counts, low, high, bins, fwhm, wiener, cosine, sine, work, expected):
    """Write E[true | observed] of each bin; see `sharpening.expected_log_intensity`.

    One transform has the histogram as real and the Gaussian as imaginary part, another one U and x U.

    Parameters
    ----------
    counts : (bins,) float64 array
    low, high, fwhm, wiener : float
    cosine, sine : (size / 2,) float64 arrays
        Of 2 pi j / size, size the length of the transforms.
    work : (5, size) float64 array
    expected : (bins,) float64 array
        Written.
    """
    re, im, re2, im2, blur = work[0], work[1], work[2], work[3], work[4]
    size = up(re.size)
    offset = (size - up(bins)) >> up(1)
    slope = (high - low) / (bins - 1)
    width = fwhm / slope
    scale, rate = 2 * math.sqrt(math.log(2.0) / math.pi) / width, -4 * math.log(2.0) / (width * width)
    for k in range(up(1), (size >> up(1)) + up(1)):
        value = scale * math.exp(rate * (np.float64(k) * np.float64(k)))
        im[k] = value
        im[size - k] = value
    im[0] = scale
    re[:] = 0.0
    for i in range(up(bins)):
        re[offset + i] = counts[i]
    transform(re, im, re2, im2, cosine, sine, -1.0)
    # The transform of the real part is (z[k] + conj z[-k]) / 2. The Gaussian is even, so its transform is real.
    blur[0] = im[0]
    re2[0] = re[0] * im[0] / (im[0] * im[0] + wiener)
    im2[0] = 0.0
    for k in range(up(1), size):
        m = size - k
        f = (im[k] + im[m]) * 0.5
        half_filter = 0.5 * f / (f * f + wiener)
        blur[k] = f
        re2[k] = (re[k] + re[m]) * half_filter
        im2[k] = (im[k] - im[m]) * half_filter
    transform(re2, im2, re, im, cosine, sine, 1.0)
    for k in range(size):
        sharpened = max(re2[k], 0.0) / size
        re[k] = sharpened
        im[k] = sharpened * (low + (np.float64(k) - np.float64(offset)) * slope)
    transform(re, im, re2, im2, cosine, sine, -1.0)
    for k in range(size):
        re[k] *= blur[k]
        im[k] *= blur[k]
    transform(re, im, re2, im2, cosine, sine, 1.0)
    for i in range(up(bins)):
        bottom = re[offset + i]
        expected[i] = im[offset + i] / bottom if bottom != 0.0 else 0.0


@kernel
def residual_table(expected, n_fine, start, stride, bounds, origin, step, table):
    """Set table[f] to w - E(w) at the centre w of fine bin f; it is linear in f between two bins."""
    bins = expected.size
    for f in range(bounds[0]):
        table[f] = origin + (f + 0.5) * step - expected[0]
    for f in range(bounds[bins - 1], n_fine):
        table[f] = origin + (f + 0.5) * step - expected[bins - 1]
    for i in range(bins - 1):
        slope = expected[i + 1] - expected[i]
        begin = up(bounds[i])
        value = origin + (begin + 0.5) * step - expected[i] - slope * (start + begin * stride - i)
        rise = step - slope * stride
        for k in range(up(bounds[i + 1]) - begin):
            table[begin + k] = value + np.float64(k) * rise
