"""The correction that harmonisation makes: lattices for all sections and for each, and a gain for each plane."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from n4flow.compute.arrays import LARGEST, SMALLEST, array_module
from n4flow.compute.threads import thread_count
from n4flow.corrections.base import Correction, Where, in_frame, misfits
from n4flow.corrections.harmonization.geometry import CONTROLS, DEGREES, block_means, depth_basis, fit_step
from n4flow.errors import InputError
from n4flow.io.frame import Frame
from n4flow.n4_bias import bspline
from n4flow.n4_bias.evaluate import Evaluator

MOST = 80.0  # A log field beyond it is no float32.


@dataclass
class Harmonization(Correction):
    """Divide by exp of the log field D(depth, y, x) + S_s(y, x) + F(y, x) + gain of the plane.

    Parameters
    ----------
    depth : (degrees, c, c) float64 array
        D: lattices of cubic B-splines in plane, times Legendre polynomials of the depth in the section.
    section : (sections, c, c) float64 array
        S of every section; that of a section that was not estimated is interpolated.
    shared : (c, c) float64 array
        F, as far as it is taken off.
    plane : (Z,) float64 array
        Log gain of every plane beside its section's: jitter and slow drift.
    edges : (sections + 1,) int array
        First plane of every section, and the one after the last. What lies before and after is padding.
    grid : tuple of int
        (y, x) of the fitted grid.
    step : int
        Voxels to a sample of that grid.
    mode : str
    gain, gain_sd : (sections,) float64 arrays
        Mean log gain of each section and its uncertainty under the model; NaN where it was not estimated.
    numbers : dict
        What the estimate rests on; see `summary`.
    reason : str, optional
        Why nothing was estimated; the log field is then 0.
    flat : (Y, X) float32 array, optional
        A flat field that was given; the volume is divided by it as well.
    frame : Frame, optional
        The part of the planes that the fields cover, which is their (Y, X); whole planes without it. Voxels around it
        stay what they are.
    """

    kind: ClassVar[str] = "harmonization"
    title: ClassVar[str] = "all sections made even together"
    is_field: ClassVar[bool] = True

    depth: np.ndarray
    section: np.ndarray
    shared: np.ndarray
    plane: np.ndarray
    edges: np.ndarray
    grid: tuple[int, int]
    step: int
    mode: str
    gain: np.ndarray
    gain_sd: np.ndarray
    numbers: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    flat: np.ndarray | None = None
    frame: Frame | None = None

    def __post_init__(self) -> None:  # a stored correction has lists
        self.grid = (self.grid[0], self.grid[1])
        self.frame = self.frame and Frame(*self.frame)

    def faults(self, shape: tuple[int, int, int]) -> Iterator[str]:
        """See `Correction.faults`."""
        sections, lattice = len(self.edges) - 1, (CONTROLS, CONTROLS)
        yield from misfits("depth", self.depth, (DEGREES, *lattice), -MOST, MOST)
        yield from misfits("section", self.section, (sections, *lattice), -MOST, MOST)
        yield from misfits("shared", self.shared, lattice, -MOST, MOST)
        yield from misfits("plane", self.plane, shape[:1], -MOST, MOST)
        yield from misfits("edges", self.edges, (sections + 1,), 0, shape[0])
        if (np.diff(self.edges) < 0).any() or self.edges[0] >= self.edges[-1]:
            yield "edges must not fall, and hold a plane"
        plane = self.frame.shape if self.frame else shape[1:]
        yield from misfits("grid", np.asarray(self.grid), (2,), 1, max(plane))
        yield from misfits("step", np.asarray(self.step), (), 1, max(plane))
        if self.flat is not None:
            yield from misfits("flat", self.flat, plane, SMALLEST, LARGEST)

    @cached_property
    def lattices(self) -> np.ndarray:
        """(Z, c, c) float64: the control points of every plane's log field."""
        planes = np.clip(np.arange(len(self.plane)), self.edges[0], self.edges[-1] - 1)
        section = np.searchsorted(self.edges, planes, side="right") - 1
        depth = np.tensordot(depth_basis(self.edges, planes), self.depth, axes=1)
        # the weights of a spline sum to 1, so a gain is added to every control point
        return np.asarray(depth + self.section[section] + self.shared + self.plane[:, None, None])

    def _evaluator(self, planes: slice, shape: tuple[int, ...], at: tuple[int, int], step: int) -> Evaluator:
        """Return an evaluator of the log field on a grid (y, x) that begins at `at`, with `step` to a fitted sample."""
        axes = [
            bspline.grid_coordinates(n, samples, CONTROLS, per_sample=step, start=start)
            for n, samples, start in zip(shape, self.grid, at, strict=True)
        ]
        return Evaluator.of_planes(self.lattices[planes], *axes)

    def shrunken_log_field(self, planes: slice, shape: tuple[int, int]) -> np.ndarray:
        """See `Correction.shrunken_log_field`; with the log of a flat field that was given."""
        per_sample = fit_step(*shape)
        evaluator = self._evaluator(planes, shape, (0, 0), per_sample)
        found = evaluator.log_field(np.empty(evaluator.shape, np.float32), thread_count(None))
        if self.flat is not None:
            found += np.log(block_means(self.flat[None], self.step // per_sample))
        return found

    def apply(self, block: Any, where: Where) -> Any:
        """Return block / exp(log field); exact zeros and voxels that are not finite stay. See `Correction.apply`."""
        return in_frame(self.frame, block, where, self._apply)

    def _apply(self, block: Any, where: Where) -> Any:
        xp = array_module(block)
        if where.z + block.shape[0] > len(self.plane):
            msg = f"the harmonisation is for {len(self.plane)} planes, got planes up to {where.z + block.shape[0]}"
            raise InputError(msg)
        if self.flat is not None:
            rows, columns = (slice(at, at + n) for at, n in zip((where.y, where.x), block.shape[1:], strict=True))
            block = block / xp.asarray(self.flat[rows, columns])
        if self.reason is not None:
            return block
        planes = slice(where.z, where.z + block.shape[0])
        evaluator = self._evaluator(planes, block.shape[1:], (where.y, where.x), self.step)
        if xp is not np:
            return block / xp.asarray(evaluator.field(np.empty(block.shape, np.float32), thread_count(None)))
        block = np.ascontiguousarray(block, np.float32)
        return evaluator.correct(block, block, thread_count(None))

    def summary(self) -> dict[str, Any]:
        """Return what the correction rests on: numbers of the estimate, and each section's gain."""
        known = np.isfinite(self.gain)
        gains = np.exp(self.gain[known])
        found: dict[str, Any] = {"mode": self.mode, "flat_field": "given" if self.flat is not None else "not given"}
        if self.reason is not None:
            return found | {"reason": self.reason}
        found |= {name: float(value) for name, value in self.numbers.items()}
        found["sections_estimated"] = int(known.sum())
        found["sections_interpolated"] = int((~known).sum())
        found["gain_min"], found["gain_max"] = float(gains.min()), float(gains.max())
        found["gain_sd_median"] = float(np.median(self.gain_sd[known]))
        return found

    @property
    def avoided_by(self) -> str:
        """See `Correction.avoided_by`."""
        return "--harmonize safe, or --harmonize off"

    def section_gains(self) -> dict[str, np.ndarray]:
        """Return the gain of every section and the uncertainty of its log."""
        return {"gain": np.exp(self.gain), "gain_sd": self.gain_sd}
