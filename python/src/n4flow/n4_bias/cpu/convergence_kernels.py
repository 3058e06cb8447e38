# mypy: ignore-errors
# (numba gives these functions their types)
"""ITK's convergence measure, compiled: the float32 recurrence of `convergence.itk_measure` in blocks.

Every step of the recurrence depends on the step before, which is slow. In a block of 128 voxels the mean moves so
little that each voxel's step can be computed from the mean near the block's middle, rounded to whole units in the last
place of the mean as the recurrence rounds it: this is a sum, and sums are fast. Once no step reaches half a unit, the
mean is frozen, and plain sums over the remaining voxels suffice (see `convergence`).
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

START = 256  # The mean of the first voxels is computed without rounding, since their steps are many units.
BLOCK = 128  # voxels of a block
SHORT_BLOCK = 32  # voxels of a block at the beginning, where the mean moves much within a block
LONG_BLOCK = 1024  # voxels of a block where the mean is frozen
ROUNDER = f4(12582912)  # 1.5 x 2^23
CLOSE = 1.5e-3  # Relative to the threshold; twice the largest error of the blocks that was observed on many voxels.
CLOSE_OF_FEW = 5e-3  # The same on few voxels, where the exact recurrence costs little.
FEW = 50_000  # Fewer voxels than this are few.
COUNT_LIMIT = 16777216.0  # 2^24, at which a float32 count stops
ULP_BELOW_1 = 1.0 / 16777216.0  # spacing of float32 numbers between 1/2 and 1
ULP_ABOVE_1 = 1.0 / 8388608.0  # spacing of float32 numbers between 1 and 2


@kernel
def block_sums(changes, at, n, mean):
    """Return count, sum and sum of squares about `mean`, and largest distance from it, of the changes in the mask.

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
    """Return the sum of the steps of `mean` that the changes cause, each rounded to whole units."""
    centre, present, zero = v.splat(f4(mean)), v.splat(PRESENT), v.splat(f4(0))
    scale, rounder = v.splat(f4(steps_per_unit)), v.splat(ROUNDER)
    steps = zero
    for x in range(at, at + n, LANES):
        e = v.load(changes, x)
        d = v.where_below(e, present, v.subtract(e, centre), zero)
        # Adding and subtracting 1.5 x 2^23 rounds a float32 number to an integer, half to even.
        steps = v.add(steps, v.subtract(v.add(v.multiply(d, scale), rounder), rounder))
    return np.float64(sum_of(steps))


@kernel
def running(changes, n):
    """Return count, mean of e = p - 1 and sum of squares by ITK's recurrence in blocks, with an error of about 0.1 %.

    Parameters
    ----------
    changes : (n or more,) float32 array
        e of each voxel in raster order; `sweep_kernels.ABSENT` outside the mask.
    n : uintp
        A multiple of `LANES`.
    """
    count, mean, squares, at, seen = 0.0, 0.0, 0.0, up(0), 0.0
    while at < n and at < up(START):
        size = min(up(SHORT_BLOCK), n - at)
        there, total, about, _largest = block_sums(changes, at, size, mean)
        if there:
            # This is the exact mean of the voxels so far and of the block together.
            squares += about - total * total / (count + there)
            count += there
            mean += total / count
        at += size
    while at < n:
        end = min(at + up(LONG_BLOCK), n)
        unit = ULP_BELOW_1 if mean < 0.0 else ULP_ABOVE_1
        lost = 0.499 * unit * min(count, COUNT_LIMIT)  # at a smaller distance from the mean, steps are lost
        if seen <= 2.0 * lost:  # The mean may be frozen, judging by the block before.
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
                # Steps are computed with the count and the mean in the middle of the block.
                counted = min(count + 0.5 * there, COUNT_LIMIT)
                middle = mean + 0.5 * total / (count + there)
                unit = ULP_BELOW_1 if mean < 0.0 else ULP_ABOVE_1
                step = unit * block_steps(changes, at, size, middle, 1.0 / (unit * counted))
                squares += about - total * step  # since the mean moves within the block
                mean += step
                count += there
            at += size
    return count, mean, squares


@kernel
def running_exactly(changes, n):
    """Return the same as `running`, voxel by voxel without error; see `convergence.itk_measure`."""
    one = f4(1)
    count, mean, squares = f4(0), one, f4(0)
    for at in range(up(0), n, up(LONG_BLOCK)):
        stop = min(at + up(LONG_BLOCK), n)
        _there, _total, _about, largest = block_sums(changes, at, stop - at, mean - one)
        unit = ULP_BELOW_1 if mean < one else ULP_ABOVE_1
        if largest < 0.49 * unit * count:  # The mean is frozen.
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
    """Return the measure, given sums of the first `count` voxels and of the rest, during which the mean is frozen."""
    squares += max(rest_squares - 2.0 * mean * rest_total + rest_count * mean * mean, 0.0)
    count = min(count + rest_count, COUNT_LIMIT)
    return math.sqrt(squares / (count - 1.0)) / (1.0 + mean)


@kernel
def itk_measure(changes, n, rest_count, rest_total, rest_squares, stop):
    """Return ITK's measure from the changes of the first n voxels, in order, and sums over the voxels that follow.

    If the measure is close to the threshold `stop`, it is computed by the exact recurrence.
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
