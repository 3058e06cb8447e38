"""What a chunk gives to the deeper levels of its pyramid: block means of an image, picked voxels of labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from n4flow.formats.layout import StoreLayout

Index = tuple[int, int, int]


@dataclass
class Piece:
    """Voxels for a deeper level, with the position of the first."""

    level: int
    start: Index
    values: np.ndarray


def averaged(layout: StoreLayout, level: int, index: Index, inside: list[int], values: np.ndarray) -> Piece:
    """Return the block means that a chunk gives to the next level; so much of it lies `inside` the array."""
    from n4flow.formats.kernels import block_mean

    here, after = layout.levels[level], layout.levels[level + 1]
    steps = [b // a for a, b in zip(here.factors, after.factors, strict=True)]
    dtype = np.float64 if layout.dtype == "float64" else np.float32
    mean = np.empty([-(-n // s) for n, s in zip(inside, steps, strict=True)], dtype)
    # The whole chunk, contiguous, so that one compiled version serves also the chunks at the edge.
    block_mean(values, tuple(inside), mean, *steps)
    start = triple(i * c // s for i, c, s in zip(index, here.chunks, steps, strict=True))
    return Piece(level + 1, start, mean)


def picked(layout: StoreLayout, index: Index, inside: list[int], chunk: np.ndarray, *, constant: bool) -> list[Piece]:
    """Return the voxels that a chunk of labels at level 0 gives to every deeper level; it may have one value."""
    origin = [i * c for i, c in zip(index, layout.levels[0].chunks, strict=True)]
    pieces = []
    for number, level in enumerate(layout.levels[1:], start=1):
        start, picks = [], []
        axes = zip(origin, inside, level.factors, level.shape, layout.shape, strict=True)
        for first, extent, factor, samples, size in axes:
            indices = np.arange(max(0, first // factor - 1), min(samples, (first + extent) // factor + 1))
            voxels = np.minimum(factor * indices + factor // 2, size - 1)
            held = (voxels >= first) & (voxels < first + extent)
            start.append(indices[held][:1])
            picks.append(voxels[held] - first)
        if all(len(pick) for pick in picks):
            values: Any = chunk
            if constant:
                values = np.broadcast_to(values[0, 0, 0], [len(pick) for pick in picks])
            else:
                for axis, pick in enumerate(picks):
                    values = values[(slice(None),) * axis + (_run(pick),)]
                values = values.copy()  # also where whole planes are picked: the chunk's memory is used again
            pieces.append(Piece(number, triple(first[0] for first in start), values))
    return pieces


def _run(picks: np.ndarray) -> Any:
    """Return rising indices as a slice where they are equally far apart: that copies far faster."""
    steps = np.diff(picks)
    if not len(steps):
        return slice(int(picks[0]), int(picks[0]) + 1)
    return slice(int(picks[0]), int(picks[-1]) + 1, int(steps[0])) if (steps == steps[0]).all() else picks


def triple(values: Any) -> Index:
    """Return three whole numbers."""
    z, y, x = (int(value) for value in values)
    return z, y, x
