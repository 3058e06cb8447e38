"""The files that a correction reads and writes: their names, and whether they are on the grid of the image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from os.path import realpath
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from n4flow.errors import InputError
from n4flow.io.formats import WRITTEN, name_without_suffix, read_as, suffix_of, written_as
from n4flow.io.nifti import UNITS_UM
from n4flow.io.volume import Volume


class Named(NamedTuple):
    """A file, what it is to the correction, and whether it is written."""

    role: str
    path: Path
    written: bool = False

    def files(self) -> list[Path]:
        """Return the file and those that are read or written with it."""
        kind = written_as(self.path) if self.written else read_as(self.path)
        if kind is None or not (self.written or self.path.is_file()):
            return [self.path]
        return kind.files_written(self.path) if self.written else kind.files_read(self.path)


def applied_name(output: Path, file: Path) -> Path:
    """Return the result of another file that the field is applied to: beside `output`, in its format.

    >>> applied_name(Path("out/t1.nii.gz"), Path("scans/t2.mha")).as_posix()
    'out/t2_corrected.nii.gz'
    """
    return output.parent / f"{name_without_suffix(file)}_corrected{suffix_of(output, WRITTEN)}"


def check_distinct(files: Sequence[Named]) -> None:
    """Refuse files of which two are the same one, or of which one that is written lies in another, which is a store.

    A file that is written is also compared with the data files of headers, and so are those that are written with it.

    Raises
    ------
    InputError
        With what the two are.
    """
    for first, second in combinations(files, 2):
        written = first.written or second.written
        for file, rival in product(first.files(), second.files()) if written else [(first.path, second.path)]:
            one, other = Path(realpath(file)), Path(realpath(rival))  # Path.resolve fails at a loop of links.
            nested = written and (one in other.parents or other in one.parents)
            if one == other or nested:
                named = (file, rival) == (first.path, second.path)
                same = "are the same file" if named else f"share the file {file}"
                relation = "lie one in the other" if nested else same
                both = f"{first.role} {first.path} and {second.role} {second.path}"
                msg = f"{both} {relation}; give each a path of its own"
                raise InputError(msg)


def check_grid(volume: Volume, like: Volume, role: str) -> None:
    """Refuse a volume that is on another grid than `like`: other shape or, where both state it, other geometry.

    An affine in a unit that is not known is taken to be in the unit of the other. `role` is for the message.

    Raises
    ------
    InputError
        With what differs, as it is in both.
    """
    known: list[tuple[str, Any, Any, float]] = [("shape", volume.shape, like.shape, 0.0)]
    step = min(like.voxel_um.values()) if like.voxel_um is not None else 0.0
    if volume.voxel_um is not None and like.voxel_um is not None:
        known.append(("voxel size", tuple(volume.voxel_um.values()), tuple(like.voxel_um.values()), 0.0))
    one, other = volume.metadata, like.metadata
    if "affine" in one and "affine" in other:
        if all(any(header.get("affine_codes", ())) for header in (one, other)):  # Without a code, no affine is stated.
            units = [UNITS_UM.get(header.get("affine_unit", "")) for header in (one, other)]
            affine = np.array(one["affine"])
            affine[:3] *= 1.0 if units[0] is None or units[1] is None else units[0] / units[1]
            edges = np.linalg.norm(np.array(other["affine"])[:3, :3], axis=0)
            known.append(("affine", affine.tolist(), other["affine"], float(edges.min())))
    elif "direction" in one and "direction" in other:
        if volume.reader.voxel_um and like.reader.voxel_um:  # ITK has directions and origin also of headers without.
            known.append(("direction", one["direction"], other["direction"], 1.0))
            known.append(("origin", one["origin"], other["origin"], step / 1e3))
    elif one["format"] == other["format"]:
        known.append(("origin", tuple(volume.origin_um.values()), tuple(like.origin_um.values()), step))
    for name, found, expected, unit in known:
        # Headers hold float32, and a thousandth of a voxel is no other grid.
        if np.shape(found) != np.shape(expected) or not np.allclose(found, expected, rtol=1e-4, atol=1e-3 * unit):
            msg = (
                f"{role} {volume.source} has the {name} {found}, and the image {like.source} has {expected}; "
                "resample it to that grid"
            )
            raise InputError(msg)
