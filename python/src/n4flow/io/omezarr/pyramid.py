"""Downsample a chunk for the deeper levels of its pyramid: block means of an image, picked voxels of labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from n4flow.io.omezarr.layout import StoreLayout, Triple, triple

MOST_PICKS = 4096  # Results of `_picks` that are cached: one for each axis, chunk and level.


@dataclass
class Piece:
    """Voxels for a deeper level, with the position of the first."""

    level: int
    start: Triple
    values: np.ndarray


def averaged(layout: StoreLayout, level: int, index: Triple, inside: list[int], values: np.ndarray) -> Piece:
    """Return the block means of a chunk for the next level, of its voxels `inside` the array (a number per axis)."""
    from n4flow.io.omezarr.pyramid_kernels import block_mean

    here, after = layout.levels[level], layout.levels[level + 1]
    steps = [b // a for a, b in zip(here.factors, after.factors, strict=True)]
    dtype = np.float64 if layout.dtype == "float64" else np.float32
    mean = np.empty([-(-n // s) for n, s in zip(inside, steps, strict=True)], dtype)
    # The whole chunk, contiguous, so that one compiled version serves also the chunks at the edge.
    block_mean(values, tuple(inside), mean, *steps)
    start = triple(i * c // s for i, c, s in zip(index, here.chunks, steps, strict=True))
    return Piece(level + 1, start, mean)


def picked(layout: StoreLayout, index: Triple, inside: list[int], chunk: np.ndarray, *, constant: bool) -> list[Piece]:
    """Return the voxels of a chunk of labels at level 0 for every deeper level; `constant` if all are equal."""
    origin = [i * c for i, c in zip(index, layout.levels[0].chunks, strict=True)]
    pieces = []
    for number, level in enumerate(layout.levels[1:], start=1):
        axes = zip(origin, inside, level.factors, level.shape, layout.shape, strict=True)
        starts, picks, counts = zip(*(_picks(*axis) for axis in axes), strict=True)
        if all(counts):
            values: Any = chunk
            if constant:
                values = np.broadcast_to(values[0, 0, 0], counts)
            else:
                for axis, pick in enumerate(picks):
                    values = values[(slice(None),) * axis + (pick,)]
                values = values.copy()  # A copy also where whole planes are picked: the chunk's memory is used again.
            pieces.append(Piece(number, triple(starts), values))
    return pieces


@lru_cache(MOST_PICKS)
def _picks(first: int, extent: int, factor: int, samples: int, size: int) -> tuple[int, Any, int]:
    """Return the first sample of a deeper level's axis, the voxels from `first` on that are picked, and their number.

    Where they are equally far apart, as nearly always, the picks are a slice, which NumPy copies far faster.
    """
    indices = np.arange(max(0, first // factor - 1), min(samples, (first + extent) // factor + 1))
    voxels = np.minimum(factor * indices + factor // 2, size - 1)
    held = (voxels >= first) & (voxels < first + extent)
    picks = voxels[held] - first
    if not len(picks):
        return 0, slice(0), 0
    steps = np.diff(picks)
    step = int(steps[0]) if len(steps) else 1
    even = slice(int(picks[0]), int(picks[-1]) + 1, step)
    return int(indices[held][0]), even if (steps == step).all() else picks, len(picks)
