"""Anderson acceleration of iterations that converge slowly, such as expectation maximisation.

D. G. Anderson, Iterative procedures for nonlinear integral equations, Journal of the ACM 12 (1965) 547-560.
"""

from __future__ import annotations

import numpy as np

DEPTH = 4  # Steps that are remembered.
LARGEST_STEP = 10.0  # Longest step over the plain one: farther away, posteriors are not linear.
CUT_OFF = 0.05  # Singular values of the changes, relative to the largest, below which they are noise.


class Anderson:
    """Steps towards x = g(x), from x and g(x) so far."""

    def __init__(self) -> None:
        self.points: list[np.ndarray] = []
        self.changes: list[np.ndarray] = []

    def step(self, point: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Return the point (n,) after x = `point`, where g(x) is `image`."""
        change = image - point
        self.points, self.changes = [*self.points[-DEPTH:], point], [*self.changes[-DEPTH:], change]
        if len(self.points) == 1:
            return image
        d_point, d_change = (np.diff(values, axis=0) for values in (self.points, self.changes))
        share = np.linalg.lstsq(d_change.T, change, rcond=CUT_OFF)[0]
        step = change - share @ (d_point + d_change)
        most = LARGEST_STEP * float(np.linalg.norm(change))
        return np.asarray(point + step * min(1.0, most / max(float(np.linalg.norm(step)), 1e-30)))
