"""Axes of an array in a file: which is Z, Y, X, which channel is taken, and the voxel size along each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from n4flow.errors import InputError
from n4flow.io.omezarr.chunk_grid import FileGrid, listed
from n4flow.io.omezarr.layout import Triple
from n4flow.io.units import micrometres_per, to_micrometres


@dataclass(frozen=True)
class Selection:
    """How (Z, Y, X) voxels lie in an array with other axes.

    Parameters
    ----------
    positions : tuple of int or None
        Axis of the array that is Z, Y, X; None for an axis it lacks.
    fixed : tuple
        Pairs of another axis and the index taken along it.
    channels : int
        Number of channels of which one is taken.
    """

    positions: tuple[int | None, int | None, int | None]
    fixed: tuple[tuple[int, int], ...]
    channels: int = 1

    def volume(self, sizes: Sequence[int], clip: Triple | None = None) -> Triple:
        """Return the (Z, Y, X) part of sizes per axis of the array, no larger than `clip`."""
        z, y, x = (1 if p is None else int(sizes[p]) for p in self.positions)
        return (z, y, x) if clip is None else (min(z, clip[0]), min(y, clip[1]), min(x, clip[2]))

    def box(self, z: slice, y: slice, x: slice) -> tuple[slice, ...]:
        """Return the slices of the array, along all its axes, that hold a box of the volume."""
        slices = {axis: slice(index, index + 1) for axis, index in self.fixed}
        slices.update({p: s for p, s in zip(self.positions, (z, y, x), strict=True) if p is not None})
        return tuple(slices[axis] for axis in sorted(slices))

    def transposed(self, values: np.ndarray) -> np.ndarray:
        """Return what `box` read as (Z, Y, X)."""
        values = values[tuple(0 if axis in dict(self.fixed) else slice(None) for axis in range(values.ndim))]
        kept = [p for p in self.positions if p is not None]
        values = values.transpose(np.argsort(np.argsort(kept)))
        return np.expand_dims(values, [i for i, p in enumerate(self.positions) if p is None])

    @property
    def in_order(self) -> bool:
        """Whether Z, Y and X come in this order in the array, so that a box is the same run of voxels in both."""
        kept = [p for p in self.positions if p is not None]
        return kept == sorted(kept)

    def touches(self, index: Sequence[int], grid: FileGrid, planes: tuple[int, int] | None = None) -> bool:
        """Return whether the file at a position of the grid holds voxels of the chosen channel, and of some planes."""
        z = self.positions[0]
        if planes is not None and z is not None:
            first, last = index[z] * grid.file[z], (index[z] + 1) * grid.file[z]
            if first >= planes[1] or last <= planes[0]:
                return False
        return all(index[axis] == chosen // grid.file[axis] for axis, chosen in self.fixed)


def select(
    path: Path, axes: Sequence[str], shape: Sequence[int], channel: int | str | None, labels: Sequence[str]
) -> Selection:
    """Decide which axes are Z, Y and X and which channel, an index or one of the known `labels`, is read.

    Axes of the array have names among t, c, z, y, x; empty ones for others, of length 1. `path` is for messages.

    Raises
    ------
    InputError
        Axes that are no volume, several time points, several channels and none chosen, or no such channel.
    """
    named = [axis for axis, size in zip(axes, shape, strict=False) if axis or size > 1]
    if len(axes) != len(shape) or len(set(named)) != len(named) or not {"y", "x"} <= set(named) <= set("tczyx"):
        msg = f"{path} has axes {', '.join(axes)} and shape {tuple(shape)}; expected z, y, x, and t or c at most"
        raise InputError(msg)
    sizes = dict(zip(axes, shape, strict=True))
    # A stack whose planes are saved as channels or times looks like this.
    planes = {
        axis: "".join("z" if a == axis else a for a, n in zip(axes, shape, strict=True) if n > 1) for axis in "ct"
    }
    flat = sizes.get("z", 1) == 1
    if sizes.get("t", 1) != 1:
        remedy = f", or give axes {planes['t']} if they are planes" if flat else ""
        msg = f"{path} has {sizes['t']} time points; expected one volume, so save the one to process by itself{remedy}"
        raise InputError(msg)
    fixed = [(position, 0) for position, axis in enumerate(axes) if axis in ("", "t")]
    if "c" in axes:
        remedy = f"; or give axes {planes['c']} if they are planes" if flat else ""
        fixed.append((axes.index("c"), _channel(path, sizes["c"], channel, labels, remedy)))
    elif channel not in (None, 0, "0"):
        msg = f"{path} has one channel, got channel {channel}; leave channel out"
        raise InputError(msg)
    z, y, x = (axes.index(name) if name in axes else None for name in "zyx")
    if 0 in shape:
        msg = f"{path} has shape {tuple(shape)}: there are no voxels in it"
        raise InputError(msg)
    return Selection((z, y, x), tuple(fixed), sizes.get("c", 1))


def named_axes(path: Path, axes: Sequence[str], shape: Sequence[int], given: str | None) -> list[str]:
    """Return the names of an array's axes: those that the user gives, where any are given, in place of the file's.

    Axes of length 1 may be left out. `path` is for messages.

    Raises
    ------
    InputError
        Their number is another than that of the axes.
    """
    if given is None:
        return list(axes)
    long = [place for place, size in enumerate(shape) if size > 1]
    places = list(range(len(shape))) if len(given) == len(shape) else long
    if len(given) != len(places) or not set(given) <= set("tczyx"):
        stated = ", ".join(axis or "?" for axis in axes)
        asked = f"one letter of t, c, z, y, x for each of its {len(shape)} axes, or those longer than 1"
        msg = f"axes {given} do not fit {path}, which has axes {stated} and shape {tuple(shape)}; give {asked}"
        raise InputError(msg)
    renamed = dict(zip(places, given, strict=True))
    return [renamed.get(place, "") for place in range(len(shape))]


def _channel(path: Path, count: int, channel: int | str | None, labels: Sequence[str], remedy: str) -> int:
    named = f" ({listed(list(labels))})" if labels else ""
    if channel is None:
        if count == 1:
            return 0
        msg = f"{path} has {count} channels{named}; choose one with channel, 0 to {count - 1}{remedy}"
        raise InputError(msg)
    if isinstance(channel, str) and channel in labels:
        return list(labels).index(channel)
    number = int(channel) if isinstance(channel, int | np.integer) or str(channel).isdecimal() else -1
    if not 0 <= number < count:
        msg = f"{path} has {count} channels{named}, got channel {channel}; choose 0 to {count - 1}"
        raise InputError(msg)
    return number


def spacing(described: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float], str]:
    """Return voxel size and origin in micrometres from OME-Zarr axes and coordinate transformations.

    Returns
    -------
    voxel_um : dict
        Of the axes with a scale and a known unit of length.
    origin_um : dict
        Of all three axes; 0 where no translation is given.
    reason : str
        What is missing, for a message; empty if nothing is, or if there are no transformations at all.
    """
    axes = described["axes"]
    scale, translation = np.ones(len(axes)), np.zeros(len(axes))
    stated = False
    # Transformations follow each other: those of the level, then those of the whole image.
    voxel: dict[str, float] = {}
    origin, reasons = dict.fromkeys("zyx", 0.0), []
    if not axes:
        return voxel, origin, "its metadata name no axes" if described["transforms"] else ""
    for transform in described["transforms"]:
        kind = transform.get("type")
        numbers = transform.get(kind)
        if kind == "scale" and isinstance(numbers, list) and len(numbers) == len(axes):
            factor = np.asarray(numbers, float)
            scale, translation, stated = scale * factor, translation * factor, True
        elif kind == "translation" and isinstance(numbers, list) and len(numbers) == len(axes):
            translation = translation + np.asarray(numbers, float)
        elif kind != "identity":  # The size would be wrong without it.
            return voxel, origin, f"a transformation is {json.dumps(transform)}, expected scale and translation"
    if not stated:
        return voxel, origin, ""
    for number, axis in enumerate(axes):
        if axis["name"] not in "zyx":
            continue
        unit = micrometres_per(axis.get("unit"))
        if unit is None:
            given = axis.get("unit")
            reasons.append(f"axis {axis['name']} has {f'the unit {given!r}' if given else 'no unit'}")
        elif scale[number] > 0 and np.isfinite(scale[number]):
            voxel[axis["name"]] = to_micrometres(float(scale[number]), unit)
            origin[axis["name"]] = to_micrometres(float(translation[number]), unit)
        else:
            reasons.append(f"axis {axis['name']} has scale {scale[number]}")
    return voxel, origin, "; ".join(reasons)
