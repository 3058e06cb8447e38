"""What corrections did to tissue, by measures that no stage makes true by itself: the verdict rests on them.

Fields and gains, right or wrong, are smooth: in a small tile they add a plane to the log signal. Maps of intensity do
more than that. So, with planes taken off, the slope of the log signal after over that before, in tiles, is 1 where
contrast was kept, 0.6 where a class was dimmed and 1.6 where it was blown up. What fields and gains did is compared
with what neighbouring planes prove, see `corrections.proof`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from n4flow.corrections.base import Correction
from n4flow.corrections.proof import Evidence, towards

TILE = 8  # Side of a tile in pixels.
FEWEST = 20  # Tiles of a section from which contrast is measured at least.


def _flat(side: int) -> np.ndarray:
    """Return (side * side, 3): an orthonormal basis of the planes over a tile."""
    y, x = np.mgrid[:side, :side].reshape(2, -1)
    return np.asarray(np.linalg.qr(np.stack([np.ones(side**2), y, x], axis=1))[0])


FLAT = _flat(TILE)


def tile_products(before: np.ndarray, after: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return (3,): whole tiles of a plane, and over them the sums of before * before and before * after.

    Parameters
    ----------
    before, after : (y, x) float32 array
        Signal; its log is taken, and planes are taken off in each tile.
    inside : (y, x) bool array
    """
    whole = _tiles(inside & (before > 0) & (after > 0)).all(axis=1)
    first, second = (np.log(_tiles(values)[whole]).astype(np.float64) for values in (before, after))
    first -= first @ FLAT @ FLAT.T
    second -= second @ FLAT @ FLAT.T
    return np.array([whole.sum(), (first**2).sum(), (first * second).sum()])


def contrast_kept(products: np.ndarray) -> np.ndarray:
    """Return (n,) slopes from the (3, n) sums of `tile_products`, NaN with too few tiles."""
    tiles, squares, both = products
    return np.divide(both, squares, out=np.full(len(tiles), np.nan), where=(tiles >= FEWEST) & (squares > 0))


def unproven(evidence: Evidence, recipe: Sequence[Correction]) -> tuple[dict[str, float], np.ndarray]:
    """Return the rms in tissue of the log of what was divided out and is not proven.

    Brightness as a whole is no matter, and that of a section is no matter of a field, which leaves it to later stages.

    Returns
    -------
    found : dict
        By kind of correction, and of `all` together; `needed` is the rms of all that is proven.
    of_section : (sections,) array
        Of all together in each section of the evidence; NaN without samples.
    """
    found: dict[str, float] = {}
    total, left = np.zeros_like(evidence.logs), evidence
    for correction in recipe:
        if not (correction.is_field or correction.is_map):
            continue
        change = left.divided_out(correction)
        if not correction.zeroes_agarose:
            total += change
            asked = left.proven - (left.by_section(left.proven) - left.by_section(change) if correction.is_field else 0)
            beyond = _rms(_excess(left.inside, change, asked)[left.inside])
            found[correction.kind] = math.hypot(found.get(correction.kind, 0.0), beyond)
        left = left.without(correction, change)
    needed, excess = evidence.proven[evidence.inside], _excess(evidence.inside, total, evidence.proven)
    squares = evidence.by_section(excess**2)[:, 0, 0]
    first = np.searchsorted(evidence.section, np.arange(evidence.section[-1] + 1))
    sampled = np.add.reduceat(evidence.inside.sum(axis=(1, 2)), first) > 0
    found |= {"needed": float(needed.std()) if needed.size else 0.0, "all": _rms(excess[evidence.inside])}
    return found, np.where(sampled, np.sqrt(squares[first]), np.nan)


def _excess(inside: np.ndarray, change: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return (Z, y, x) what a change does beyond what is asked for, each about its mean inside."""
    if not inside.any():
        return np.zeros_like(change)
    does, wanted = (values - values[inside].mean(dtype=np.float32) for values in (change, asked))
    return np.asarray(does - towards(does, wanted))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2, dtype=float))) if values.size else 0.0


def _tiles(plane: np.ndarray) -> np.ndarray:
    """Return (tiles, TILE * TILE): the whole tiles of a plane."""
    rows, columns = (n // TILE for n in plane.shape)
    cut = plane[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE)
    return cut.transpose(0, 2, 1, 3).reshape(-1, TILE * TILE)
