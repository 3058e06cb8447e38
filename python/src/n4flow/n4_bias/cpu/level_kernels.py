# mypy: ignore-errors
# (numba gives these functions their types)
"""One level of N4, compiled: the function that every thread runs. `cpu.fit` explains it, `reference` is in NumPy."""

from __future__ import annotations

import numpy as np
from numba import typeof

from n4flow.compute.jit import kernel
from n4flow.n4_bias.cpu import thread_sync as sync
from n4flow.n4_bias.cpu.convergence_kernels import cv, itk_measure
from n4flow.n4_bias.cpu.sharpening_kernels import expected_log_intensity, fine_bounds, histogram, residual_table
from n4flow.n4_bias.cpu.sweep_kernels import SMALL_STEP, expand_rows, field_strip, fit_strip

up = np.uintp
f4 = np.float32

LEAST_WEIGHT = 1.2e-8  # the constant of `bspline`
LEAST_SPREAD = 1e-6  # the constant of `reference`
MOST_FINE = 65000  # Number of fine bins, at most: their indices have 16 bits.

# Indices into `state`, which all threads share. LOW is the lowest value that ITK finds, FLOOR the lowest there is.
LOW, HIGH, FLOOR, ORIGIN, STEP, FINE, LARGEST, MADE, STOP = range(9)
STATE = 9


@kernel
def combine(rows, n_y, first, weights, partial, out):
    """Contract the sums of the strips (j, c) along z to the lattice out[a, j, c], strip by strip."""
    n_strips = partial.shape[0]
    flat, target = partial.reshape(n_strips, -1), out.reshape(out.shape[0], -1)
    out[:] = 0.0
    for strip in range(n_strips):
        z = rows.strips[strip, 0] // n_y
        for k in range(4):
            w = np.float64(weights[z, k])
            a = first[z] + up(k)
            for i in range(flat.shape[1]):
                target[a, i] += w * flat[strip, i]


@kernel
def take_step(delta, omega, alpha, lattice, step):
    """Add the step alpha delta / omega to the control points that voxels determine; return its largest magnitude."""
    largest = 0.0
    for a in range(delta.shape[0]):
        for j in range(delta.shape[1]):
            for c in range(delta.shape[2]):
                value = 0.0
                if omega[a, j, c] > LEAST_WEIGHT:
                    value = alpha * delta[a, j, c] / omega[a, j, c]
                step[a, j, c] = value
                lattice[a, j, c] += value
                largest = max(largest, abs(value))
    return largest


@kernel
def lay_grid(state, largest, bins, per_bin):
    """Define the fine bins of the next sweep: no voxel changes by more than the largest control point of the step."""
    floor, high = state[FLOOR], state[HIGH]
    extent = high - floor + 2.0 * largest
    step = max((high - state[LOW]) / ((bins - 1) * per_bin), extent / (MOST_FINE - 8))
    state[ORIGIN] = floor - largest - step
    state[STEP] = step
    state[FINE] = np.floor(extent / step) + 4.0
    state[LARGEST] = largest


@kernel
def fit_sweep(thread, threads, words, rows, n_y, work, tables, weights_y, weights_x, table, state):
    """Claim strips and accumulate their part of Lee's fit."""
    while state[STOP] == 0.0:
        strip = sync.claim(words, sync.FIRST_SWEEP, thread, threads, work.partial.shape[0])
        if strip >= work.partial.shape[0]:
            break
        fit_strip(up(strip), thread, rows, n_y, table, tables, weights_y, weights_x, work)


@kernel
def field_sweep(thread, threads, words, rows, n_y, work, tables, state):
    """Claim strips and subtract the new field from them."""
    stride = (up(state[FINE]) + up(64)) & ~up(15)
    counts = work.counts[thread, : up(2) * stride]
    counts[:] = np.int32(0)
    grid = (f4(state[ORIGIN]), f4(1.0 / state[STEP]), f4(state[FINE]))
    small = state[LARGEST] <= SMALL_STEP
    while True:
        strip = sync.claim(words, sync.SECOND_SWEEP, thread, threads, work.partial.shape[0])
        if strip >= work.partial.shape[0]:
            break
        field_strip(up(strip), thread, rows, n_y, grid, small, tables, work, counts)
    for f in range(stride):
        counts[f] += counts[f + stride]


@kernel
def expand(thread, threads, work, tables, lattice, phi):
    """Expand field and step along x before the second sweep, by one thread each if there are two."""
    if thread == 0:
        expand_rows(lattice, tables.weight_x, tables.reach, work.field)
    if thread == min(1, threads - 1):
        expand_rows(phi, tables.weight_x, tables.reach, work.step)


@kernel
def lowest_and_highest(work):
    """Return the lowest and highest position over all strips, in fine bins."""
    ends = work.ends
    low, high = ends[0, 0], ends[0, 1]
    for strip in range(1, ends.shape[0]):
        low = min(low, ends[strip, 0])
        high = max(high, ends[strip, 1])
    return low, high


@kernel
def sum_counts(threads, work, n_fine):
    """Add the counts of all threads to those of the first."""
    total = work.counts[0]
    for thread in range(1, threads):
        part = work.counts[thread]
        for f in range(up(n_fine)):
            total[f] += part[f]
    return total


@kernel
def set_missed_apart(work, total, low, n_fine):
    """Remove voxels that ITK misses from the counts, since they lie below its range, and give each a bin of its own.

    These voxels are the first in `work.places`. Returns their number.
    """
    missed = 0
    positions = work.positions
    for k in range(positions.size):
        place = work.places[k]
        if place < 0 or positions[k] >= low:
            break
        total[work.fine_index[place]] -= np.int32(1)
        missed += 1
        work.fine_index[place] = n_fine + missed
    return missed


@kernel
def sharpen(threads, work, state, settings):
    """Compute range, histogram and the residual of every fine bin after the second sweep."""
    low, high = lowest_and_highest(work)
    origin, step, n_fine = state[ORIGIN], state[STEP], int(state[FINE])
    lowest = min(low, work.positions[0])
    if not high > low:  # The values that ITK finds have no spread.
        low = lowest
    state[LOW], state[FLOOR], state[HIGH] = origin + low * step, origin + lowest * step, origin + high * step
    if state[HIGH] - state[LOW] <= LEAST_SPREAD:  # The field explains all variation.
        work.table[:] = f4(0)
        return
    total = sum_counts(threads, work, n_fine)
    missed = set_missed_apart(work, total, low, n_fine)
    bins = settings.bins
    per_bin = (bins - 1) / (state[HIGH] - state[LOW])
    start, stride = (origin + 0.5 * step - state[LOW]) * per_bin, step * per_bin  # of fine bins, measured in bins
    fine_bounds(n_fine, start, stride, bins, work.bounds)
    histogram(total, n_fine, start, stride, work.bounds, work.histogram)
    expected_log_intensity(
        work.histogram, state[LOW], state[HIGH], bins, settings.fwhm, settings.wiener,
        work.cosine, work.sine, work.transforms, work.expected,
    )  # fmt: skip
    residual_table(work.expected, n_fine, start, stride, work.bounds, origin, step, work.table)
    work.table[n_fine] = f4(0)
    for k in range(missed):
        w = origin + work.positions[k] * step
        work.table[n_fine + 1 + k] = w - work.expected[bins - 1]


@kernel
def measure_change(work, settings, stop):
    """Return the convergence measure of the last step."""
    total, squares, count = 0.0, 0.0, 0.0
    for strip in range(settings.kept_strips, work.changes.shape[0]):
        total += work.changes[strip, 0]
        squares += work.changes[strip, 1]
        count += work.voxels[strip]
    if not settings.itk:
        return cv(count, total, squares)
    return itk_measure(work.kept, up(work.kept.size), count, total, squares, stop)


@kernel
def run_level(
    thread, threads, words, rows, n_y, work, tables, lattice, phi, omega, state, settings, first, most, stop, measures
):
    """Iterate one level.

    Parameters
    ----------
    thread, threads : int
    words : what `sync.new_sync` returned
    rows : packing.Rows
    n_y : uintp
    work : fit.Work
    tables : fit.Tables
    lattice, phi, omega : (cz, cy, cx) float64 arrays
        The lattice of the log field, updated; work arrays for the step and for the weights of the control points.
    state : (STATE,) float64 array
        Values that all threads share.
    settings : fit.KernelSettings
    first : bool
        Whether this is the first level. It begins with the fine bins of the log image, like after a step of 0.
    most : int
        Maximum number of iterations.
    stop : float
        Measure at or below which the level ends.
    measures : (most,) float64 array
        Written.
    """
    if first:
        if thread == 0:
            lay_grid(state, 0.0, settings.bins, settings.per_bin)
        expand(thread, threads, work, tables, lattice, phi)
        if not sync.barrier(words, threads):
            return
        field_sweep(thread, threads, words, rows, n_y, work, tables, state)
        if not sync.barrier(words, threads):
            return
        if thread == 0:
            sharpen(threads, work, state, settings)
            sync.reset_claims(words, sync.SECOND_SWEEP, threads)
    if thread == 0:
        state[STOP] = 0.0
        work.ones[:] = f4(1)
        work.ones[int(state[FINE])] = f4(0)
    if not sync.barrier(words, threads):
        return
    fit_sweep(thread, threads, words, rows, n_y, work, tables, tables.square_y, tables.square_x, work.ones, state)
    if not sync.barrier(words, threads):
        return
    if thread == 0:
        combine(rows, n_y, tables.first_z, tables.square_z, work.partial, omega)
        sync.reset_claims(words, sync.FIRST_SWEEP, threads)
    if not sync.barrier(words, threads):
        return
    made = 0
    while True:
        if made < most:
            fit_sweep(
                thread, threads, words, rows, n_y, work, tables, tables.share_y, tables.share_x, work.table, state
            )
        if not sync.barrier(words, threads):
            return
        if state[STOP] != 0.0 or made == most:
            break
        if thread == 0:
            combine(rows, n_y, tables.first_z, tables.share_z, work.partial, phi)
            largest = take_step(phi, omega, settings.over_relax, lattice, phi)
            lay_grid(state, largest, settings.bins, settings.per_bin)
            sync.reset_claims(words, sync.FIRST_SWEEP, threads)
        if not sync.barrier(words, threads):
            return
        expand(thread, threads, work, tables, lattice, phi)
        if not sync.barrier(words, threads):
            return
        field_sweep(thread, threads, words, rows, n_y, work, tables, state)
        posted = sync.atomic_load(words, sync.POSTED)
        if not sync.barrier(words, threads):
            return
        made += 1
        # One thread sharpens while another computes the measure. The next sweep begins when the table is complete; if
        # the measure then ends the level, that sweep is discarded.
        if thread == 0:
            sharpen(threads, work, state, settings)
            sync.reset_claims(words, sync.SECOND_SWEEP, threads)
            sync.change(words, sync.POSTED)
        if thread == threads - 1:
            measures[made - 1] = measure_change(work, settings, stop)
            if measures[made - 1] <= stop:
                state[STOP] = 1.0
        if not sync.wait_for_change(words, sync.POSTED, posted):
            return
    if thread == 0:
        sync.reset_claims(words, sync.FIRST_SWEEP, threads)
        state[MADE] = made
    sync.barrier(words, threads)


def compile_parts(
    thread, threads, words, rows, n_y, work, tables, lattice, phi, omega, state, settings, first, most, stop, measures
):
    """Compile half of what `run_level` calls for such arguments: what takes longest of it and comes late.

    A process that does so beside one that compiles `run_level` spares it this part.
    """
    sweep = (thread, threads, words, rows, n_y, work, tables, tables.share_y, tables.share_x, work.table, state)
    for part, arguments in (
        (sharpen, (threads, work, state, settings)),
        (measure_change, (work, settings, stop)),
        (fit_sweep, sweep),
    ):
        part.compile(tuple(map(typeof, arguments)))
