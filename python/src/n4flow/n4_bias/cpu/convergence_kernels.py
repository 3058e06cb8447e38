# mypy: ignore-errors
# (numba gives these functions their types)
"""ITK's convergence measure, compiled: the float32 recurrence of `convergence.itk_measure` in blocks.

The recurrence waits for itself at every voxel. In a block of 128 the mean moves so little that each voxel's step can
be taken from the mean at the block's start, rounded to whole units in the mean's last place as the recurrence rounds
it: that is a sum, and sums are fast. Once no step reaches half a unit the mean stands still, and plain sums over the
rest suffice.
"""

from __future__ import annotations

import math

import numpy as np

from n4flow.compute import simd as v
from n4flow.compute.jit import kernel
from n4flow.compute.simd import highest_of, sum_of
from n4flow.n4_bias.cpu.sweep_kernels import LANES, PRESENT

up = np.uintp
f4 = np.float32

START = 256  # voxels at the beginning whose mean is taken exactly: there a step is many units
BLOCK = 128
SHORT_BLOCK = 32  # as long as the mean moves much within a block
LONG_BLOCK = 1024  # where the mean stands still
ROUNDER = f4(12582912)  # 1.5 x 2^23
CLOSE = 1.5e-3  # twice the largest error seen of the blocks on many voxels
CLOSE_OF_FEW = 5e-3  # on few, where the recurrence costs little
FEW = 50_000
COUNT_LIMIT = 16777216.0  # 2^24, where a float32 count stops
ULP_BELOW_1 = 1.0 / 16777216.0  # spacing of float32 between 1/2 and 1
ULP_ABOVE_1 = 1.0 / 8388608.0


@kernel
def block_sums(changes, at, n, mean):
    """Return of changes of voxels in the mask: count, sum and sum of squares about `mean`, largest distance from it.

    `n` is a multiple of `LANES`.
    """
    centre, present, zero, one = v.splat(f4(mean)), v.splat(PRESENT), v.splat(f4(0)), v.splat(f4(1))
    there, total, squares, largest = zero, zero, zero, zero
    for x in range(at, at + n, LANES):
        e = v.load(changes, x)
        d = v.where_below(e, present, v.subtract(e, centre), zero)
        there = v.add(there, v.where_below(e, present, one, zero))
        total = v.add(total, d)
        squares = v.fma(d, d, squares)
        largest = v.maximum(largest, v.maximum(d, v.subtract(zero, d)))
    return sum_of(there), np.float64(sum_of(total)), np.float64(sum_of(squares)), np.float64(highest_of(largest))


@kernel
def block_steps(changes, at, n, mean, steps_per_unit):
    """Return the sum of the steps that the changes ask of `mean`, in whole units, each rounded by itself."""
    centre, present, zero = v.splat(f4(mean)), v.splat(PRESENT), v.splat(f4(0))
    scale, rounder = v.splat(f4(steps_per_unit)), v.splat(ROUNDER)
    steps = zero
    for x in range(at, at + n, LANES):
        e = v.load(changes, x)
        d = v.where_below(e, present, v.subtract(e, centre), zero)
        # adding and taking off 1.5 x 2^23 leaves a float32 without its fraction, rounded half to even
        steps = v.add(steps, v.subtract(v.add(v.multiply(d, scale), rounder), rounder))
    return np.float64(sum_of(steps))


@kernel
def running(changes, n):
    """Return count, mean of e = p - 1 and sum of squares by ITK's recurrence, in blocks; about 0.1 % from it.

    Parameters
    ----------
    changes : (n or more,) float32 array
        e of each voxel in order; `sweeps.ABSENT` outside the mask.
    n : uintp
        A multiple of `LANES`.
    """
    count, mean, squares, at, seen = 0.0, 0.0, 0.0, up(0), 0.0
    while at < n and at < up(START):
        size = min(up(SHORT_BLOCK), n - at)
        there, total, about, _largest = block_sums(changes, at, size, mean)
        if there:
            # the exact mean of what was seen and of the block together
            squares += about - total * total / (count + there)
            count += there
            mean += total / count
        at += size
    while at < n:
        end = min(at + up(LONG_BLOCK), n)
        unit = ULP_BELOW_1 if mean < 0.0 else ULP_ABOVE_1
        lost = 0.499 * unit * min(count, COUNT_LIMIT)  # the distance from the mean below which no step is half a unit
        if seen <= 2.0 * lost:  # worth a look: else the voxels before were far beyond
            there, _total, about, seen = block_sums(changes, at, end - at, mean)
            if seen < lost:
                squares += about
                count += there
                at = end
                continue
        seen = 0.0
        while at < end:
            size = min(up(min(BLOCK, max(SHORT_BLOCK, count / 64))) & ~(LANES - up(1)), end - at)
            there, total, about, largest = block_sums(changes, at, size, mean)
            seen = max(seen, largest)
            if there:
                # each voxel's step from where count and mean are in the middle of the block
                counted = min(count + 0.5 * there, COUNT_LIMIT)
                middle = mean + 0.5 * total / (count + there)
                unit = ULP_BELOW_1 if mean < 0.0 else ULP_ABOVE_1
                step = unit * block_steps(changes, at, size, middle, 1.0 / (unit * counted))
                squares += about - total * step  # the mean came nearer within the block
                mean += step
                count += there
            at += size
    return count, mean, squares


@kernel
def running_exactly(changes, n):
    """Return what `running` does, voxel by voxel: `convergence.itk_measure`."""
    one = f4(1)
    count, mean, squares = f4(0), one, f4(0)
    for at in range(up(0), n, up(LONG_BLOCK)):
        stop = min(at + up(LONG_BLOCK), n)
        _there, _total, _about, largest = block_sums(changes, at, stop - at, mean - one)
        unit = ULP_BELOW_1 if mean < one else ULP_ABOVE_1
        if largest < 0.49 * unit * count:  # the mean stands still
            for i in range(at, stop):
                if changes[i] < PRESENT:
                    count += one
                    d = one + changes[i] - mean
                    squares += d * d * (count - one) / count
            continue
        for i in range(at, stop):
            if changes[i] < PRESENT:
                p = one + changes[i]
                count += one
                if count > one:
                    d = p - mean
                    squares += d * d * (count - one) / count
                mean = f4(np.float64(mean) * (1.0 - 1.0 / np.float64(count)) + np.float64(p / count))
    return np.float64(count), np.float64(mean) - 1.0, np.float64(squares)


@kernel
def finish(count, mean, squares, rest_count, rest_total, rest_squares):
    """Return the measure: after `count` voxels the mean stands still, and plain sums over the rest suffice."""
    squares += max(rest_squares - 2.0 * mean * rest_total + rest_count * mean * mean, 0.0)
    count = min(count + rest_count, COUNT_LIMIT)
    return math.sqrt(squares / (count - 1.0)) / (1.0 + mean)


@kernel
def itk_measure(changes, n, rest_count, rest_total, rest_squares, stop):
    """Return ITK's measure from the changes of the first n voxels, in order, and sums over those that follow.

    A close call is decided by the recurrence itself.
    """
    count, mean, squares = running(changes, n)
    measure = finish(count, mean, squares, rest_count, rest_total, rest_squares)
    if abs(measure - stop) <= (CLOSE if n > FEW else CLOSE_OF_FEW) * stop:
        count, mean, squares = running_exactly(changes, n)
        measure = finish(count, mean, squares, rest_count, rest_total, rest_squares)
    return measure


@kernel
def cv(count, total, squares):
    """Return the coefficient of variation of p = 1 + e from the sums of e."""
    spread = max(squares - total * total / count, 0.0) / (count - 1.0)
    return math.sqrt(spread) / (1.0 + total / count)
