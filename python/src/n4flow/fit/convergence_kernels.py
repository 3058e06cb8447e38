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

from n4flow.fit.compiled import kernel, reduction

up = np.uintp
f4 = np.float32

START = 256  # voxels at the beginning whose mean is taken exactly: there a step is many units
BLOCK = 128
SHORT_BLOCK = 32  # as long as the mean moves much within a block
LONG_BLOCK = 4096  # once the mean stands still
CLOSE = 3e-3
COUNT_LIMIT = 16777216.0  # 2^24, where a float32 count stops
ULP_BELOW_1 = 1.0 / 16777216.0  # spacing of float32 between 1/2 and 1
ULP_ABOVE_1 = 1.0 / 8388608.0


@kernel
def largest_change(changes, index, outside, n):
    """Return the bits of the largest |change| of a voxel in the mask: whole numbers the compiler may vectorise."""
    bits = changes.view(np.int32)
    largest = np.int32(0)
    for i in range(n):
        size = bits[i] & np.int32(0x7FFFFFFF)
        largest = max(largest, size if index[i] != outside else np.int32(0))
    return np.int32(largest)


@reduction
def block_sums(changes, index, outside, at, n, mean):
    """Return count, sum and sum of squares about `mean` of the changes of voxels in the mask."""
    there, total, squares = np.int32(0), f4(0), f4(0)
    for x in range(n):
        inside = index[at + x] != outside
        d = changes[at + x] - mean if inside else f4(0)
        there += np.int32(inside)
        total += d
        squares += d * d
    return there, total, squares


@reduction
def block_steps(changes, index, outside, at, n, mean, steps_per_unit):
    """Return the sum of the steps that the changes ask of `mean`, in whole units, each rounded by itself."""
    steps = np.int32(0)
    for x in range(n):
        d = changes[at + x] - mean if index[at + x] != outside else f4(0)
        steps += np.int32(d * steps_per_unit + f4(4096.5)) - np.int32(4096)
    return steps


@kernel
def running(changes, index, outside, n):
    """Return count, mean of e = p - 1 and sum of squares by ITK's recurrence, in blocks; about 0.1 % from it.

    Parameters
    ----------
    changes : (n or more,) float32 array
    index : (n or more,) uint16 array
        Where it is `outside`, the voxel is not in the mask.
    outside : uint16
    n : uintp
    """
    largest = np.array([largest_change(changes, index, outside, n)], np.int32).view(np.float32)[0]
    count, mean, squares, at = 0.0, 0.0, 0.0, up(0)
    total = 0.0
    while at < n and at < up(START):
        size = min(up(SHORT_BLOCK), n - at)
        there, a, b = block_sums(changes, index, outside, at, size, f4(0))
        count += there
        total += a
        squares += b
        at += size
    if count > 0.0:
        mean = total / count
        squares = max(squares - total * mean, 0.0)
    while at < n:
        unit = ULP_BELOW_1 if mean < 0.0 else ULP_ABOVE_1
        moves = largest + abs(mean) >= 0.5 * unit * min(count, COUNT_LIMIT)
        size = min(up(min(BLOCK, max(SHORT_BLOCK, count / 64))) if moves else up(LONG_BLOCK), n - at)
        there, off, about = block_sums(changes, index, outside, at, size, f4(mean))
        squares += about
        if moves and there:
            # each voxel's step from where count and mean are in the middle of the block
            seen = min(count + 0.5 * there, COUNT_LIMIT)
            middle = mean + 0.5 * off / (count + there)
            step = unit * block_steps(changes, index, outside, at, size, f4(middle), f4(1.0 / (unit * seen)))
            squares -= off * step  # the mean came nearer within the block
            mean += step
        count += there
        at += size
    return count, mean, squares


@kernel
def running_exactly(changes, index, outside, n):
    """Return what `running` does, voxel by voxel: `convergence.itk_measure`."""
    one = f4(1)
    count, mean, squares = f4(0), f4(0), f4(0)
    for i in range(n):
        if index[i] == outside:
            continue
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
def itk_measure(changes, index, outside, n, rest_count, rest_total, rest_squares, stop):
    """Return ITK's measure from the changes of the first n voxels, in order, and sums over those that follow.

    A close call, within 0.3 % of `stop`, is decided by the recurrence itself.
    """
    count, mean, squares = running(changes, index, outside, n)
    measure = finish(count, mean, squares, rest_count, rest_total, rest_squares)
    if abs(measure - stop) <= CLOSE * stop:
        count, mean, squares = running_exactly(changes, index, outside, n)
        measure = finish(count, mean, squares, rest_count, rest_total, rest_squares)
    return measure


@kernel
def cv(count, total, squares):
    """Return the coefficient of variation of p = 1 + e from the sums of e."""
    spread = max(squares - total * total / count, 0.0) / (count - 1.0)
    return math.sqrt(spread) / (1.0 + total / count)
