"""Where the voxels of a volume lie, and whether two volumes are on the same grid.

A reader whose file states directions gives one matrix, `affine_um`: from the voxel (x, y, z), counted from 0, to the
place of its centre in micrometres to the right, to the front and to the top (RAS, as in NIfTI; ITK counts to the left
and to the back). Writers of formats with directions take it. Other formats state a voxel size and an origin at most,
along the axes of their arrays; written to a file with directions, these are to the left, to the back and to the top, as
ITK has it for such formats.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from n4flow.errors import InputError, N4flowWarning
from n4flow.io.omezarr.layout import Triple
from n4flow.io.reader import Reader

if TYPE_CHECKING:
    from n4flow.io.volume import Volume

log = logging.getLogger("n4flow")

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # From (R, A, S) to (L, P, S) and back.
# Of a voxel. Headers round: directions from a quaternion of float32 can put the far corner of a usual volume this much
# off. A shift by half a voxel, which is what two conventions of a voxel's centre differ by, is another grid.
TOLERANCE = 0.25
SIDES = "LR", "PA", "IS"  # Along (x, y, z) of the space: names of its negative and its positive side.


def usable(affine: np.ndarray) -> bool:
    """Return whether an affine gives every voxel a place of its own."""
    matrix = affine[:3, :3]
    sizes = np.linalg.norm(matrix, axis=0)
    return bool(np.isfinite(affine).all() and sizes.min() > 0 and abs(np.linalg.det(matrix / sizes)) > 1e-6)


def straight_origin(affine: np.ndarray) -> dict[str, float]:
    """Return the centre of the first voxel by axis name, along the axes of the array; 0 where these are oblique."""
    sizes = np.diag(affine)[:3]
    oblique = affine[:3, :3] - np.diag(sizes)
    if np.abs(oblique).max() > 1e-9 * np.abs(sizes).max():
        return dict.fromkeys("xyz", 0.0)
    return dict(zip("xyz", (np.sign(sizes) * affine[:3, 3] + 0.0).tolist(), strict=True))


def affine_of(volume: Volume | None, voxel_um: dict[str, float] | None) -> np.ndarray | None:
    """Return the affine of a volume in micrometres, None if it states none.

    Where `voxel_um` differs from the size that the file states, it was given by hand: directions and the first voxel
    stay.
    """
    if volume is None or volume.reader.affine_um is None:
        return None
    affine, stated = volume.reader.affine_um.copy(), volume.reader.voxel_um
    for column, axis in enumerate("xyz"):
        if voxel_um:
            affine[:3, column] *= voxel_um[axis] / stated.get(axis, float(np.linalg.norm(affine[:3, column])))
    return affine


def affine_to_write(like: Volume | None, voxel_um: dict[str, float]) -> np.ndarray:
    """Return the affine for a file with directions, from that of `like`, or from its origin."""
    affine = affine_of(like, voxel_um)
    if affine is None:
        affine = np.diag([*(voxel_um[axis] for axis in "xyz"), 1.0])
        affine[:3, 3] = [like.origin_um[axis] if like is not None else 0.0 for axis in "xyz"]
        affine = LPS @ affine
    return affine


def of_level(affine: np.ndarray, voxel_um: dict[str, float]) -> np.ndarray:
    """Return the affine of a pyramid level whose voxels are `voxel_um` from that of the full resolution.

    A voxel of the level is a block of whole voxels; its centre is that of the block.
    """
    factors = np.array([voxel_um[axis] for axis in "xyz"]) / np.linalg.norm(affine[:3, :3], axis=0)
    coarse = np.diag([*factors, 1.0])
    coarse[:3, 3] = (factors - 1) / 2
    return affine @ coarse


def described(volume: Volume) -> str:
    """Say for a message where a volume lies: shape, voxel size, what its axes point to, first voxel."""
    affine = affine_of(volume, volume.voxel_um)
    if affine is None:
        return f"{volume.shape}, no directions"
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    ways = []
    for axis, vector in zip("zyx", (affine[:3, :3] / sizes).T[::-1], strict=True):
        main = int(np.argmax(np.abs(vector)))
        straight = abs(vector[main]) > 1 - 1e-6
        pointed = SIDES[main][int(vector[main] > 0)] if straight else "(" + " ".join(f"{v:.4g}" for v in vector) + ")"
        ways.append(f"{axis} to {pointed}")
    size, first = (" ".join(f"{v:.6g}" for v in values) for values in (sizes[::-1] / 1e3, affine[:3, 3] / 1e3))
    return f"{volume.shape} voxels of {size} mm (z y x), {', '.join(ways)}, the first one at {first} mm (R A S)"


def on_grid(volume: Volume, like: Volume, role: str, *, turn: bool = True) -> Volume:
    """Return a volume on the grid of the image `like`.

    Where both files state directions, their affines are compared, to a quarter of a voxel. A volume that covers the
    image by flips and swaps of axes is read so that it fits, block by block, and a warning says so. Otherwise shapes
    are compared and, where both state them, voxel sizes and, within one format, origins.

    Parameters
    ----------
    volume, like : Volume
    role : str
        What the volume is to the image, for messages: `the mask`.
    turn : bool
        Whether a volume may be flipped; without it, one that would have to be is refused.

    Raises
    ------
    InputError
        The volume is on another grid, with what differs in both.
    """
    one, other = affine_of(volume, volume.voxel_um), affine_of(like, like.voxel_um)
    if one is None or other is None:
        _compare_sizes(volume, like, role)
        return volume
    found = _turn(np.linalg.inv(other) @ one, volume.shape, like.shape)
    if found == ((0, 1, 2), (False, False, False)):
        return volume
    if found is None or not turn:
        if sorted(volume.shape) != sorted(like.shape):
            _refuse(role, volume, like, "shape", volume.shape, like.shape)
        _refuse(role, volume, like, "geometry", described(volume), described(like))
    turned = _Turned(volume.reader, *found)
    ways = ", ".join("-"[not flip :] + "zyx"[axis] for axis, flip in zip(*found, strict=True))
    warnings.warn(
        f"{role} {volume.source} lies on the image {like.source} by flips and swaps of axes alone and is read so: "
        f"z, y, x of the image are its {ways}",
        N4flowWarning,
        stacklevel=3,
    )
    return replace(volume, reader=turned, voxel_um=like.voxel_um, origin_um=like.origin_um, metadata=turned.metadata)


def _turn(moved: np.ndarray, shape: Triple, wanted: Triple) -> tuple[tuple[int, ...], tuple[bool, ...]] | None:
    """Return axes of a volume that are z, y, x of an image, and which of them are flipped; None if it needs more.

    `moved` leads from voxels (x, y, z) of the volume to voxels of the image.
    """
    nearest = np.rint(moved[:3, :3])
    if not np.abs(nearest).sum(0).tolist() == np.abs(nearest).sum(1).tolist() == [1, 1, 1]:
        return None
    axes = np.abs(nearest).argmax(1)
    flipped = nearest.sum(1) < 0
    ideal = np.column_stack([nearest, np.where(flipped, np.array(wanted[::-1]) - 1, 0)])
    corners = np.array([(*corner, 1) for corner in product(*[(0, n - 1) for n in shape[::-1]])]).T
    same = tuple(shape[::-1][axis] for axis in axes) == wanted[::-1]
    if not same or np.abs((moved[:3] - ideal) @ corners).max() > TOLERANCE:
        return None
    return tuple(2 - int(axis) for axis in axes[::-1]), tuple(bool(flip) for flip in flipped[::-1])


def _compare_sizes(volume: Volume, like: Volume, role: str) -> None:
    """Compare what files state of which one at least has no directions."""
    known: list[tuple[str, Sequence[float], Sequence[float], float]] = [("shape", volume.shape, like.shape, 0.0)]
    if volume.voxel_um is not None and like.voxel_um is not None:
        known.append(("voxel size", tuple(volume.voxel_um.values()), tuple(like.voxel_um.values()), 0.0))
        if volume.metadata["format"] == like.metadata["format"]:
            origins = tuple(volume.origin_um.values()), tuple(like.origin_um.values())
            known.append(("origin", *origins, min(like.voxel_um.values())))
    for name, found, expected, unit in known:
        relative, absolute = (0.0, TOLERANCE * unit) if unit else (1e-4, 0.0)
        if not np.allclose(found, expected, rtol=relative, atol=absolute):
            _refuse(role, volume, like, name, found, expected)
    silent = next(file.source for file in (volume, like) if file.reader.affine_um is None)
    compared = " and ".join(name for name, *_values in known)
    log.info("%s is compared with the image by %s alone: %s states no directions", role, compared, silent)


def _refuse(role: str, volume: Volume, like: Volume, name: str, found: object, expected: object) -> NoReturn:
    msg = (
        f"{role} {volume.source} has the {name} {found}, and the image {like.source} has {expected}; "
        "resample it to that grid"
    )
    raise InputError(msg)


class _Turned(Reader):
    """What another reader gives, with axes swapped and then flipped."""

    def __init__(self, reader: Reader, axes: Sequence[int], flipped: Sequence[bool]) -> None:
        self.reader, self.axes, self.flipped = reader, tuple(axes), tuple(flipped)
        self.path, self.dtype, self.borrowed = reader.path, reader.dtype, reader.borrowed
        self.shape, self.chunks = (
            (triple[axes[0]], triple[axes[1]], triple[axes[2]]) for triple in (reader.shape, reader.chunks)
        )
        self.voxel_um, self.origin_um = {}, dict.fromkeys("zyx", 0.0)
        self.metadata = dict(reader.metadata)
        if "missing_planes" in self.metadata:
            n = self.shape[0]
            lost = self.metadata["missing_planes"] if axes[0] == 0 else [[0, n]]
            self.metadata["missing_planes"] = [[n - b, n - a] for a, b in lost] if flipped[0] else lost

    def release(self) -> None:
        self.reader.release()

    def read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        box = [slice(0)] * 3
        for axis, flip, span, n in zip(self.axes, self.flipped, (z, y, x), self.shape, strict=True):
            box[axis] = slice(n - span.stop, n - span.start) if flip else span
        values = self.reader.read(box[0], box[1], box[2]).transpose(self.axes)
        return values[tuple(slice(None, None, -1 if flip else None) for flip in self.flipped)]
