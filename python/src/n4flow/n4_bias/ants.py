"""What ANTs' N4BiasFieldCorrection does around the fit, where n4flow does otherwise: mesh in mm, mask, intensities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from n4flow.errors import InputError
from n4flow.n4_bias.field import BiasField, Slices
from n4flow.n4_bias.problem import Knots

MOST_PADDED = 1 << 30  # Voxels of a padded image, at most, unless the image itself has more.


@dataclass(frozen=True)
class AntsHabits:
    """The choices of N4BiasFieldCorrection that a correction of a file can follow; by default it follows none.

    Parameters
    ----------
    spline_mm : float, optional
        Distance of the first level's knots in millimetres. The domain of the spline is a whole number of spans, centred
        on the image.
    pick_voxels : bool
        Shrinking takes the voxel in the middle of each block, in place of the block's mean, and the first and last of
        them stand for the first and last voxel of the image.
    whole_image : bool
        Without a mask every voxel is fitted, in place of Otsu's mask.
    keep_outside : bool
        Voxels outside the mask are written as they were.
    rescale : bool
        Corrected voxels in the mask are mapped linearly to the range that they had before.
    """

    spline_mm: float | None = None
    pick_voxels: bool = False
    whole_image: bool = False
    keep_outside: bool = False
    rescale: bool = False


@dataclass(frozen=True)
class Domain:
    """The domain of the spline: the image, padded by voxels before and after it, and the samples that are fitted.

    Parameters
    ----------
    control_points : int, sequence of int or Knots
        Of the first level.
    shape : tuple of int
        The image.
    margins : tuple of (int, int)
        Voxels before and after the image along each axis.
    steps : tuple of int, optional
        Every how many voxels one is fitted along each axis; all of them by default.
    """

    control_points: int | Sequence[int] | Knots
    shape: tuple[int, ...]
    margins: tuple[tuple[int, int], ...] = ((0, 0),) * 3
    steps: tuple[int, ...] | None = None

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """Shape of the image with its margins."""
        return tuple(n + low + high for n, (low, high) in zip(self.shape, self.margins, strict=True))

    @property
    def image(self) -> Slices:
        """The part of the domain that the image is."""
        return tuple(slice(low, low + n) for (low, _high), n in zip(self.margins, self.shape, strict=True))

    def samples(self, values: np.ndarray) -> np.ndarray:
        """Return the samples of an array of the image, 0 around it.

        ITK's shrinking leaves n // k samples, placed around the same centre.
        """
        padded = np.pad(values, self.margins) if np.any(self.margins) else values
        if self.steps is None:
            return padded
        picks = []
        for n, k in zip(self.padded_shape, self.steps, strict=True):
            count = max(n // k, 1)
            first = (n - 1 - k * (count - 1) + 1) // 2
            picks.append(slice(first, first + k * (count - 1) + 1, k))
        return np.ascontiguousarray(padded[tuple(picks)])

    def over_all(self, field: BiasField) -> BiasField:
        """Return the field that was fitted to the samples as one of the whole domain."""
        if self.steps is None:
            return field
        return replace(field, grid_shape=self.padded_shape, shape=self.padded_shape, shrink=(1,) * len(self.shape))


def spline_domain(shape: Sequence[int], voxel_um: Sequence[float], spline_mm: float) -> Domain:
    """Return the domain of a spline whose knots are `spline_mm` apart at the first level, as ANTs lays it out.

    The centres of the outer voxels are ceil(extent / distance) spans apart after the image is padded, half of it on
    each side, and the smaller half before. An axis of one voxel is not padded.

    Raises
    ------
    InputError
        The distance is not above 0, or so large that the padded image would not be reasonable.
    """
    if not (spline_mm > 0 and math.isfinite(spline_mm)):
        msg = f"the distance of knots must be above 0 mm, got {spline_mm:g}"
        raise InputError(msg)
    controls, margins = [], []
    for n, um in zip(shape, voxel_um, strict=True):
        extent = (n - 1) * um / 1e3
        # The subtraction keeps 30 / 10 at three spans, whatever the rounding of the two numbers.
        spans = max(1, math.ceil(extent / spline_mm - 1e-9))
        added = int((spans * spline_mm - extent) / (um / 1e3) + 0.5) if n > 1 else 0
        controls.append(spans + 3)
        margins.append((added // 2, added - added // 2))
    domain = Domain(tuple(controls), tuple(shape), tuple(margins))
    padded = math.prod(domain.padded_shape)
    if padded > max(MOST_PADDED, math.prod(shape)):
        sizes = " x ".join(f"{n * um / 1e3:g}" for n, um in zip(reversed(shape), reversed(voxel_um), strict=True))
        msg = (
            f"knots {spline_mm:g} mm apart pad the image of {sizes} mm (x, y, z) to {padded:.2g} voxels; give a "
            "smaller distance, or the number of spans along each axis, as in -b [1x1x1]"
        )
        raise InputError(msg)
    return domain


def follow(habits: AntsHabits, corrected: np.ndarray, original: np.ndarray, mask: np.ndarray) -> None:
    """Change corrected intensities in place by `keep_outside` and `rescale`."""
    if habits.rescale:
        inside = mask & np.isfinite(original)
        if inside.any():
            corrected[inside] = _to_range(corrected[inside], original[inside])
    if habits.keep_outside:
        np.copyto(corrected, original, where=~mask)


def _to_range(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Return values mapped linearly to the range of others; values of no spread as they are."""
    (low, high), (to_low, to_high) = ((float(given.min()), float(given.max())) for given in (values, like))
    if high == low:
        return values
    return (to_high - (high - values.astype(np.float64)) * ((to_high - to_low) / (high - low))).astype(np.float32)
