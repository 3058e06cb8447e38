"""What corrections did to contrast between neighbouring tissue: a measure that no stage makes true by itself.

Fields and gains, right or wrong, are smooth: within a small tile they add a plane to the log intensity and leave what
stands out from it alone. Maps of intensity do not. So with planes taken off, the slope of the corrected log intensity
over the given one, within tiles, is 1 where contrast was kept, 0.6 where a class was dimmed, 1.6 where it was blown up.
"""

from __future__ import annotations

import numpy as np

from n4flow.sections import SectionTable

TILE = 8  # shrunken voxels
FEWEST = 20  # tiles of a section that tell


def local_contrast(before: np.ndarray, after: np.ndarray, inside: np.ndarray, sections: SectionTable) -> np.ndarray:
    """Return for each section the contrast between neighbouring tissue after over before; NaN without enough tissue.

    Parameters
    ----------
    before, after : (Z, y, x) float32 arrays
        Log intensities on the shrunken grid.
    inside : (Z, y, x) bool array
        Tissue with valid voxels in both.
    sections : SectionTable
    """
    y, x = np.mgrid[:TILE, :TILE].reshape(2, -1)
    plane, _r = np.linalg.qr(np.stack([np.ones(TILE**2), y, x], axis=1))
    found = np.full(len(sections), np.nan)
    for number, section in enumerate(sections):
        whole = _tiles(inside[section.planes]).all(axis=1)
        if whole.sum() >= FEWEST:
            given, made = (_tiles(logs[section.planes])[whole].astype(float) for logs in (before, after))
            given -= given @ plane @ plane.T
            made -= made @ plane @ plane.T
            found[number] = (given * made).sum() / max(float((given**2).sum()), 1e-12)
    return found


def _tiles(planes: np.ndarray) -> np.ndarray:
    """Return (tiles, TILE * TILE): whole tiles of all planes."""
    n_z, n_y, n_x = planes.shape
    rows, columns = n_y // TILE, n_x // TILE
    whole = planes[:, : rows * TILE, : columns * TILE].reshape(n_z, rows, TILE, columns, TILE)
    return whole.transpose(0, 1, 3, 2, 4).reshape(-1, TILE * TILE)
