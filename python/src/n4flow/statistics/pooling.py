"""Sums of the histograms of several planes, and their percentiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from n4flow.statistics.bins import N_BINS, bin_edges, bin_index


def pool(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge (value, count) pairs bin by bin: sorted values (bin means, float32) and counts (int64)."""
    if not len(values):
        return np.empty(0, np.float32), np.empty(0, np.int64)
    index = bin_index(values)
    base = int(index.min())
    span = int(index.max()) - base + 1
    if span <= 4 * len(values):
        total = np.bincount(index - base, weights=counts)
        moment = np.bincount(index - base, weights=np.asarray(counts, np.float64) * values)
        used = np.flatnonzero(total)
        total, moment = total[used], moment[used]
    else:  # few pairs in a wide range
        order = np.argsort(index, kind="stable")
        first = np.flatnonzero(np.diff(index[order], prepend=base - 1))
        total = np.add.reduceat(np.asarray(counts, np.float64)[order], first)
        moment = np.add.reduceat((np.asarray(counts, np.float64) * values)[order], first)
    return (moment / total).astype(np.float32), total.astype(np.int64)


class Pool:
    """Pairs that are merged one part at a time, in the order in which they are added; `pool` merges all at once."""

    def __init__(self) -> None:
        # pages take memory when they are first written to
        self._total, self._moment = np.zeros(2 * N_BINS), np.zeros(2 * N_BINS)
        self._first, self._stop = len(self._total), 0  # bins in use

    def add(self, values: np.ndarray, counts: np.ndarray) -> None:
        """Add (value, count) pairs, finite float32 and whole numbers."""
        if not len(values):
            return
        index = bin_index(values) + N_BINS
        self._first, self._stop = min(self._first, int(index.min())), max(self._stop, int(index.max()) + 1)
        counts = counts.astype(np.float64)
        np.add.at(self._total, index, counts)  # one after the other, in order
        np.add.at(self._moment, index, counts * values)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return sorted values (bin means, float32) and counts (int64)."""
        used = self._first + np.flatnonzero(self._total[self._first : self._stop])
        total, moment = self._total[used], self._moment[used]
        return (moment / total).astype(np.float32), total.astype(np.int64)


def weighted_percentile(values: np.ndarray, counts: np.ndarray, q: float) -> float:
    """Return the q-th percentile (0 to 100) of pooled pairs, as numpy's `linear` method on the voxels themselves.

    The voxels of a bin are assumed to lie evenly around their mean, up to the nearer edge of the bin. The result is
    within one bin of the exact one, and exact where a bin holds a single voxel, or one distinct value at its edge.
    NaN when there are no voxels.
    """
    cumulated = np.cumsum(counts)
    if not len(cumulated):
        return float("nan")
    lower, upper = bin_edges(values)
    position = (int(cumulated[-1]) - 1) * q / 100.0
    rank = np.array([np.floor(position), np.ceil(position)])
    at = np.minimum(np.searchsorted(cumulated, rank, side="right"), len(cumulated) - 1)
    within = (2 * (rank - (cumulated[at] - counts[at])) + 1) / counts[at] - 1  # -1 .. 1 across the bin
    mean = values[at].astype(np.float64)
    estimate = mean + within * np.minimum(mean - lower[at], upper[at] - mean)
    return float(estimate[0] + (position - rank[0]) * (estimate[1] - estimate[0]))


def add_up(parts: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Add counts and sums of partial histograms (bins, counts, sums), in each of which a bin occurs once."""
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
    if len(parts) == 1:
        bins, counts, sums = parts[0]
        return bins, counts, sums
    bins, *numbers = (np.concatenate(lists) for lists in zip(*parts, strict=True))
    first = int(bins.min())
    counts, sums = (np.bincount(bins - first, each) for each in numbers)  # whole numbers, exact below 2**53
    used = np.flatnonzero(counts)
    return first + used, counts[used].astype(np.int64), sums[used].astype(np.int64)
