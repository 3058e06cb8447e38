"""Compiled loops of the report's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from n4flow.compute.numba_cache import njit


@njit(nogil=True, cache=True)
def class_sums(before: Any, after: Any, inside: Any, lowest: Any, threshold: Any, side: Any, sums: Any) -> None:
    """Add the pixels of a plane that are inside to the sums of their tile and class.

    Parameters
    ----------
    before, after : (y, x) float32 array
        Signal.
    inside : (y, x) bool array
    lowest, threshold : float
        A pixel is dark with a signal after above the first, bright above the second.
    side : int
        Of a tile, pixels.
    sums : (2, 3, tiles) float64 array
        Of the dark and of the bright class: pixels, sum of signal before, sum of signal after. Tiles go by rows.
    """
    n_y, n_x = inside.shape
    across = (n_x + side - 1) // side
    for y in range(n_y):
        for x in range(n_x):
            if not inside[y, x]:
                continue
            second = np.float64(after[y, x])
            if second > lowest or second > threshold:
                tile, member = y // side * across + x // side, 1 if second > threshold else 0
                sums[member, 0, tile] += 1
                sums[member, 1, tile] += np.float64(before[y, x])
                sums[member, 2, tile] += second
