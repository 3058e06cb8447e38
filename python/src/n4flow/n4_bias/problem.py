"""The input and the result of a backend, the control points of the levels, and checks of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from n4flow.compute.arrays import to_numpy
from n4flow.errors import InputError
from n4flow.n4_bias.bspline import spans
from n4flow.n4_bias.settings import Level

LEAST_SPREAD = 1e-4  # An image whose log intensities span less than this (0.01 %) has nothing to correct.
MOST_SATURATED = 0.5  # At most this share of the fitted voxels may hold the largest value.
MOST_SPANS = 4  # Levels that begin at a distance double the spans of an axis up to this; finer takes anatomy for bias.
LEAST_SAMPLES_APART, MOST_KNOTS_IN_TISSUE = 4, 8  # knots that are closer are doubted
MOST_CONTROLS = 1 << 24  # largest number of control points: 128 MB of float64


@dataclass(frozen=True)
class Solution:
    """The lattice of the log bias field, and the report of each level."""

    lattice: np.ndarray
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class Voxels:
    """Numbers of voxels of the fitted image: in the mask, and those of them that cannot be fitted."""

    masked: int
    nonfinite: int
    nonpositive: int


@dataclass(frozen=True)
class Survey:
    """Statistics of the image that decide whether it can be fitted."""

    voxels: Voxels
    low: float  # lowest and highest usable intensity; 0 if no voxel is usable
    high: float
    at_high: int  # number of voxels that hold the highest intensity

    @property
    def usable(self) -> int:
        """Number of voxels that can be fitted."""
        return self.voxels.masked - self.voxels.nonfinite - self.voxels.nonpositive


@dataclass(frozen=True)
class Problem:
    """An image to fit, for the itk backend and `reference`. The other backends pack the voxels instead."""

    image: np.ndarray  # (z, y, x) or (y, x), real or integer
    mask: np.ndarray  # bool: voxels that are fitted; the image is finite and above 0 there
    weights: np.ndarray | None  # float32: confidence in the fit; it enters neither histogram nor convergence
    survey: Survey


def make_problem(image: np.ndarray, mask: np.ndarray, weights: np.ndarray | None = None, _threads: int = 1) -> Problem:
    """Return the problem without the voxels that cannot be fitted.

    The logarithm needs finite values above 0. Raising or shifting other values would put a step into the histogram, so
    they are excluded and counted (ITK keeps them as they are). A voxel of weight 0 is outside the mask.
    """
    if weights is not None:
        mask = mask & (weights > 0)
    finite = np.isfinite(image)
    usable = mask & finite & (image > 0)
    masked, n = int(np.count_nonzero(mask)), int(np.count_nonzero(usable))
    nonfinite = masked - int(np.count_nonzero(mask & finite))
    values = image[usable]
    low, high = (float(values.min()), float(values.max())) if n else (0.0, 0.0)
    at_high = int(np.count_nonzero(values == high))
    survey = Survey(Voxels(masked, nonfinite, masked - nonfinite - n), low, high, at_high)
    return Problem(image, usable, weights, survey)


def degenerate(survey: Survey, shape: Sequence[int]) -> str | None:
    """Return why no field can be fitted to an image of that shape, or None.

    For such images N4 would return a finite but meaningless field without an error. Serial data has many of them:
    blank or clipped sections.
    """
    n = survey.usable
    least = 4 ** sum(size > 1 for size in shape)
    if n == 0:
        masked = survey.voxels.masked
        return f"no positive finite voxel among {masked} in the mask" if masked else "empty mask"
    if n < least:
        return f"too few voxels: {n}, a cubic spline needs {least}"
    if math.log(survey.high / survey.low) <= LEAST_SPREAD:
        return f"no spread: every voxel is within {100 * LEAST_SPREAD:g} % of {survey.low:g}"
    saturated = survey.at_high / n
    if saturated > MOST_SATURATED:
        return f"saturated: {100 * saturated:.0f} % of the voxels hold the largest value, {survey.high:g}"
    return None


class Knots(NamedTuple):
    """A distance of the first level's knots, and the sides of the field of view that it divides."""

    distance_um: float
    extents_um: tuple[float, ...]


def wide_spline(distance_um: float, extents_um: Sequence[float], name: str) -> str | None:
    """Return a sentence where a distance of control points is larger than a volume, None where it is not."""
    if distance_um <= max(extents_um):
        return None
    extent = " x ".join(f"{um:g}" for um in extents_um)
    return (
        f"a distance of {distance_um:g} micrometres is larger than {name} ({extent}), so one span covers each axis, "
        "as without it; was another unit meant?"
    )


def first_controls(extents_um: Sequence[float], distance_um: float | None, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the number of control points along each axis: one for each `distance_um`, and at least 4 (one span).

    round(extent / distance) control points have round(extent / distance) - 3 spans between them. This is linumpy's
    rule. ANTs counts spans by the distance, which is three more; the levels double both, and a fit as fine as ANTs'
    rule makes it at distances that suit linumpy's takes anatomy for bias. None gives one span. `shape` is that of the
    fitted image.

    Raises
    ------
    InputError
        The distance is not above 0, or finer than the voxels of the fitted image along every axis that has several, or
        needs a lattice that is too large.
    """
    if distance_um is None:
        return (4,) * len(extents_um)
    if not distance_um > 0:
        msg = f"the spline distance must be above 0 micrometres, got {distance_um:g}"
        raise InputError(msg)
    first = tuple(max(4, round(extent / distance_um)) for extent in extents_um)
    voxels = [extent / n for extent, n in zip(extents_um, shape, strict=True) if n > 1]
    if voxels and distance_um < min(voxels):
        msg = (
            f"a spline distance of {distance_um:g} micrometres is finer than the voxels of the fitted image "
            f"({min(voxels):g} micrometres); give at least {4 * min(voxels):g}, or shrink less"
        )
        raise InputError(msg)
    controls = math.prod(first)
    if controls > MOST_CONTROLS:
        spans_wanted = MOST_CONTROLS ** (1 / len(shape))
        msg = (
            f"a spline distance of {distance_um:g} micrometres needs a lattice of {controls} control points "
            f"({8e-9 * controls:.1f} GB), at most {MOST_CONTROLS} are allowed; "
            f"give at least {max(extents_um) / spans_wanted:.3g}"
        )
        raise InputError(msg)
    return first


def too_fine(mask: Any, controls: Sequence[int], extents_um: Sequence[float]) -> str | None:
    """Return in words that the knots of the last level are as fine as voxels or anatomy, or None.

    Axes of one span say nothing. `mask` is that of the fitted image, `extents_um` are the sides of its field of view.
    """
    found = []
    for axis, (n, count, extent) in enumerate(zip(mask.shape, controls, extents_um, strict=True)):
        some = np.flatnonzero(to_numpy(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))))
        if spans(count) > MOST_SPANS and some.size:
            found.append((extent / spans(count), (n - 1) / spans(count), (some[-1] - some[0] + 1) / n * spans(count)))
    close = [each for each in found if each[1] < LEAST_SAMPLES_APART or each[2] > MOST_KNOTS_IN_TISSUE]
    if not close:
        return None
    knot_um, samples, times = min(close)
    apart = np.format_float_positional(knot_um, precision=3, fractional=False, trim="-")
    return (
        f"the bias field's knots are {apart} micrometres apart, {samples:.2g} voxels of the fitted image and "
        f"{times:.2g} times within the tissue; so fine a field takes anatomy for bias: give a larger spline distance"
    )


def level_controls(
    first: Sequence[int], levels: int, shape: Sequence[int], *, thin: bool = False, most: int | None = None
) -> tuple[tuple[int, ...], ...]:
    """Return the control points along each axis at each level.

    Each level doubles the spans: c becomes 2c - 3. An axis with one sample has one control at every level.

    Parameters
    ----------
    first : sequence of int
        Control points of the first level, at least 4 on each axis.
    levels : int
    shape : sequence of int
        The fitted image.
    thin : bool
        Whether an axis has at most one span for each step between samples, at the first level and later: a section of
        few planes then gets few spans along Z. False doubles every axis at every level, as ITK does.
    most : int, optional
        Spans up to which an axis is doubled.

    Raises
    ------
    InputError
        Fewer than 4 control points along an axis, or a lattice that is too large.
    """
    if len(first) != len(shape) or min(first) < 4:
        msg = f"control points must be at least 4 along each of the {len(shape)} axes, got {tuple(first)}"
        raise InputError(msg)

    def most_spans(n: int) -> int:
        return max(1, n - 1)

    controls = [1 if n == 1 else min(c, most_spans(n) + 3) if thin else c for c, n in zip(first, shape, strict=True)]
    chosen = [tuple(controls)]
    for _level in range(levels - 1):
        for axis, n in enumerate(shape):
            doubled = 2 * spans(controls[axis])
            if n > 1 and not (thin and doubled > most_spans(n)) and not (most is not None and doubled > most):
                controls[axis] = doubled + 3
        chosen.append(tuple(controls))
    if math.prod(chosen[-1]) > MOST_CONTROLS:
        msg = (
            f"{levels} levels from {tuple(first)} control points end with a lattice of {chosen[-1]}, "
            f"more than the {MOST_CONTROLS} control points allowed; use fewer levels or control points"
        )
        raise InputError(msg)
    return tuple(chosen)
